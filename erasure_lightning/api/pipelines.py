"""A diffusers pipeline as a `Backbone` for training or measuring, and its restoration."""

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from erasure_lightning.adapters.lora import lora_layers
from erasure_lightning.backbones.families import FAMILIES, Family
from erasure_lightning.concepts.worlds import World, find_world, worlds
from erasure_lightning.errors import ErasureError


class Borrowed:
    """A pipeline's modules as a `Backbone`, and what they were before.

    Args:
        pipeline: Pipeline of a family in `FAMILIES`.

    Raises:
        ErasureError: As `check_pipeline`, or if its components do not fit together, or its sampler
            cannot be used.
    """

    def __init__(self, pipeline: Any) -> None:
        family = check_pipeline(pipeline)
        roots = _roots(pipeline)
        modules = {module: None for root in roots for module in root.modules()}
        parameters = {p: None for root in roots for p in root.parameters()}
        self._modules = [(module, *_attributes(module)) for module in modules]
        self._parameters = [(p, p.data, p.requires_grad) for p in parameters]
        for component in _used(pipeline, family).values():
            for module in component.modules():
                vars(module).pop("forward", None)  # left by hooks; a copy would call this module's
        backbone = family.load_class()
        configs = {name: part.config for name, part in _used(pipeline, family).items()}
        backbone.check_configs(_name(pipeline), configs, pipeline.scheduler)
        self.backbone = backbone.from_pipeline(_name(pipeline), pipeline, _world(pipeline))
        self.backbone.requires_grad_(False).eval()

    def protect(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace the values of parameters by copies, which training may overwrite."""
        for parameter in parameters:
            parameter.data = parameter.data.clone()

    def restore(self) -> None:
        """Restore every module's former children, hooks, flags, values, precision and device."""
        for module, attributes, contents in self._modules:
            vars(module).clear()
            vars(module).update(attributes)
            for name, content in contents.items():
                attributes[name].clear()
                attributes[name].update(content)
        for parameter, value, requires_grad in self._parameters:
            parameter.data = value
            parameter.grad = None
            parameter.requires_grad_(requires_grad)


def _attributes(module: nn.Module) -> tuple[dict[str, Any], dict[str, dict[Any, Any]]]:
    """A module's attributes, and the contents of those that are dictionaries."""
    attributes = dict(vars(module))
    plain = {n: v for n, v in attributes.items() if type(v) in (dict, OrderedDict)}
    return attributes, {name: dict(value) for name, value in plain.items()}


@contextmanager
def as_backbone(pipeline: Any) -> Iterator[Borrowed]:
    """A pipeline's modules as a `Backbone`; the pipeline is restored afterwards, also on errors.

    Within it a caller's ``torch.inference_mode()`` is off: methods and attacks need gradients.

    Args:
        pipeline: Pipeline of a family in `FAMILIES`.

    Raises:
        ErasureError: If it cannot be used, as for `Borrowed`.
    """
    borrowed = Borrowed(pipeline)
    try:
        with torch.inference_mode(False):
            yield borrowed
    finally:
        borrowed.restore()


def check_pipeline(pipeline: Any) -> Family:
    """The family of a pipeline whose modules can be copied, trained and run.

    Raises:
        ErasureError: If its class is unknown, or a component is missing, has LoRA layers, is
            offloaded or compiled, or was loaded in ``torch.inference_mode()``.
    """
    family = _family(pipeline)
    _require_components(pipeline, family)
    parameters = [p for root in _roots(pipeline) for p in root.parameters()]
    if any(p.is_inference() for p in parameters):
        raise ErasureError(
            "Erasing needs weights that can be trained; found inference tensors. Load the pipeline"
            " outside torch.inference_mode()."
        )
    if any(p.is_meta for p in parameters):
        raise ErasureError(
            "Erasing needs the pipeline's weights in memory; found some on the meta device,"
            " where sequential CPU offload leaves them. Erase before"
            " enable_sequential_cpu_offload."
        )
    _require_no_loras(pipeline)
    for name, component in _used(pipeline, family).items():
        for module in component.modules():
            _require_own_forward(name, module)
    return family


def _roots(pipeline: Any) -> list[nn.Module]:
    """All components that are modules."""
    return [value for value in vars(pipeline).values() if isinstance(value, nn.Module)]


def _used(pipeline: Any, family: Family) -> dict[str, nn.Module]:
    """The components that a `Backbone` consists of, by name."""
    components = {name: getattr(pipeline, name, None) for name in family.models}
    return {name: value for name, value in components.items() if value is not None}


def _require_own_forward(name: str, module: nn.Module) -> None:
    """Raises if a module has another forward than its class: one that is bound to this module.

    Copies would call it, and compute with its weights in place of their own.
    """
    forward = vars(module).get("forward")
    if forward is None or getattr(forward, "__func__", None) is type(module).forward:
        return
    if hasattr(module, "_orig_mod"):
        what = "torch.compile"
        cure = f"Compile it in place (pipeline.{name}.compile()), or later."
    elif hasattr(module, "_hf_hook"):
        what = "hooks of offloading"
        cure = "Call pipeline.remove_all_hooks() first."
    else:
        what = "another forward, as group offloading and caches set it"
        cure = "Load the pipeline without it."
    raise ErasureError(
        f"Erasing and measuring need a plain {name}, of which copies are made; found {what}. {cure}"
    )


def _family(pipeline: Any) -> Family:
    family = FAMILIES.get(type(pipeline).__name__) or _family_of_components(pipeline)
    if family is None:
        known = ", ".join(f"{name} ({family.title})" for name, family in FAMILIES.items())
        raise ErasureError(
            f"Erasing needs a diffusers pipeline of a known family, or one with its components;"
            f" found {type(pipeline).__name__}. Known: {known}."
        )
    return family


def _family_of_components(pipeline: Any) -> Family | None:
    """The one family whose components a pipeline of another class has, as for image-to-image."""
    names = {name for family in FAMILIES.values() for name in family.models}
    parts = {name: getattr(pipeline, name, None) for name in names}
    classes = {name: type(part).__name__ for name, part in parts.items() if part is not None}
    matching = [family for family in FAMILIES.values() if _consists_of(family, classes)]
    return matching[0] if len(matching) == 1 else None


def _consists_of(family: Family, classes: Mapping[str, str]) -> bool:
    """Whether components of these classes are a family's, which may lack its optional ones."""
    needed = {name: cls for name, (_, cls) in family.models.items()}
    absent = {name for name in family.optional if name not in classes}
    return classes == {name: cls for name, cls in needed.items() if name not in absent}


def _require_components(pipeline: Any, family: Family) -> None:
    """Raises if a pipeline was loaded without a component, for example to save memory."""
    towers = {tower: tokenizer for tokenizer, tower in family.tokenizers.items()}
    absent = {name for name in family.optional if getattr(pipeline, name, None) is None}
    needed = {*family.models, *family.tokenizers, "scheduler"} - absent
    needed -= {towers[name] for name in absent}
    missing = sorted(name for name in needed if getattr(pipeline, name, None) is None)
    if missing:
        raise ErasureError(
            f"Erasing needs every component of a {type(pipeline).__name__}; found no"
            f" {', '.join(missing)}. Load the pipeline with {'it' if len(missing) == 1 else 'them'}"
            " (from_pretrained without None in its place)."
        )


def _require_no_loras(pipeline: Any) -> None:
    """Raises if a component has LoRA layers, behind which methods find no weights to edit."""
    components = {n: part for n, part in vars(pipeline).items() if isinstance(part, nn.Module)}
    adapted = [name for name, component in components.items() if lora_layers(component)]
    if adapted:  # all are named, of which a bare fuse_lora() leaves FLUX's text encoder out
        raise ErasureError(
            f"Erasing needs a {adapted[0]} without LoRA layers, which hide the weights to edit;"
            f" found some. Call pipeline.fuse_lora(components={adapted}) and"
            " pipeline.unload_lora_weights() first to erase from the model with them, or the"
            " latter alone."
        )


def _name(pipeline: Any) -> str:
    """The folder or Hub id it was loaded from, or the world; else its class."""
    world = _world(pipeline)
    if world is not None:
        return world.name
    return str(getattr(pipeline, "name_or_path", None) or type(pipeline).__name__)


def _world(pipeline: Any) -> World | None:
    """The world whose folder it was loaded from."""
    path = getattr(pipeline, "name_or_path", None)
    if not path or not Path(path).is_dir():
        return None
    known = [find_world(name) for name in worlds()]
    return next((w for w in known if w.pipeline.samefile(path)), None)
