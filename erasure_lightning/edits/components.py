"""A pipeline's component as the target of an edit, beneath torch.compile and peft."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from erasure_lightning.adapters.base import ADAPTER_CHILD
from erasure_lightning.adapters.lora import lora_layers
from erasure_lightning.edits.fingerprints import hash_tensors
from erasure_lightning.edits.format import plain_name
from erasure_lightning.errors import ErasureError

#: Precisions of a loaded component.
_PRECISIONS = (torch.float32, torch.bfloat16, torch.float16)

#: Relative rounding of weights to which a LoRA was added and subtracted, in epsilons.
_ROUNDING = 2

#: Segments of names that are not a component's own: our adapters, IP-Adapter's, and the copies of
#: attention weights that ``fuse_qkv_projections`` makes and that unfusing leaves.
_ADDED = (ADAPTER_CHILD, "processor", "encoder_hid_proj", "to_qkv", "to_kv", "to_added_qkv")


def component_fingerprints(
    module: nn.Module, changed: Mapping[str, Tensor] | None = None
) -> dict[str, str]:
    """Hashes of a component's own weights, without adapters.

    Args:
        module: The component.
        changed: Values in the place of its own, by plain name.

    Returns:
        The hash of its values, ``native``, and of the values rounded to each precision, by dtype.
    """
    own = {
        plain_name(name): value
        for name, value in sorted(module.state_dict().items())
        if is_own(name)
    }
    own |= changed or {}
    native, *rounded = hash_tensors(own, [None, *_PRECISIONS])
    names = [str(dtype).removeprefix("torch.") for dtype in _PRECISIONS]
    return {"native": native} | dict(zip(names, rounded, strict=True))


def is_own(name: str) -> bool:
    """Whether a tensor is a component's own, by its name: no adapter's, and no copy of weights."""
    segments = name.split(".")
    return not any(s in _ADDED or s.startswith("lora_") for s in segments)


def is_same_component(one: dict[str, str], other: dict[str, str]) -> bool:
    """Whether fingerprints are of the same component, loaded in whatever precision."""
    return one["native"] in other.values() or other["native"] in one.values()


class EditedComponent:
    """A component of a pipeline that an edit is applied to.

    Args:
        pipeline: A diffusers pipeline, or anything with the same attributes.
        name: Name of the component.

    Raises:
        ErasureError: If the pipeline has no such component.
    """

    def __init__(self, pipeline: Any, name: str) -> None:
        component = getattr(pipeline, name, None)
        if not isinstance(component, nn.Module):
            raise ErasureError(
                f"The edit needs a pipeline with a {name}; found none in {type(pipeline).__name__}."
                " It fits pipelines with the same component as its base model."
            )
        self.name = name
        self.title = f"{type(pipeline).__name__}.{name}"
        self.module: nn.Module = getattr(component, "_orig_mod", component)
        self._compiled = any(
            hasattr(m, "_orig_mod") or getattr(m, "_compiled_call_impl", None)
            for m in component.modules()
        )

    def is_float16(self) -> bool:
        """Whether its weights are float16, whose rounding differs from bfloat16's."""
        return next(self.module.parameters()).dtype == torch.float16

    def parameters(self) -> dict[str, nn.Parameter]:
        """Its parameters by `plain_name`."""
        return {plain_name(n): p for n, p in self.module.named_parameters(remove_duplicate=False)}

    def differing(self, values: Mapping[str, Tensor]) -> list[str]:
        """Names of the edit's values that differ from the component's, in its precision."""
        parameters = self.parameters()
        return [n for n, v in values.items() if n not in parameters or not _equal(parameters[n], v)]

    @torch.no_grad()
    def copy(self, values: Mapping[str, Tensor]) -> None:
        """Writes values of parameters."""
        parameters = self.parameters()
        for name, value in values.items():
            parameters[name].copy_(value)

    def write(self, values: Mapping[str, Tensor]) -> None:
        """Writes values of parameters, and checks that they are there.

        Raises:
            ErasureError: If some have other values afterwards.
        """
        self.copy(values)
        if different := self.differing(values):
            raise ErasureError(
                f"{self.title} needs to hold the edit's {len(values)} tensors once they are"
                f" written; found other values in {len(different)}, {different[0]} first: the edit"
                " has NaN, two names share one tensor, or a hook holds another copy. Load the"
                " pipeline again."
            )

    def require_shapes(self, values: Mapping[str, Tensor]) -> None:
        """Raises unless the component has parameters of an edit's names and shapes.

        Raises:
            ErasureError: If one is missing or of another shape.
        """
        shapes = {name: parameter.shape for name, parameter in self.parameters().items()}
        if wrong := [name for name, value in values.items() if shapes.get(name) != value.shape]:
            raise ErasureError(
                f"The edit needs {len(values)} parameters of {self.title}; found {len(wrong)}"
                f" missing or of another shape, {wrong[0]} first. It fits pipelines with the same"
                " component as its base model."
            )

    def require_writable(self, adapters: bool) -> None:
        """Raises if an edit could not be written, or would have no effect.

        Args:
            adapters: Whether the edit adds hooks to layers.

        Raises:
            ErasureError: With the first obstacle and its remedy.
        """
        self._require_none((*self._unwritable(), *self._ineffective(adapters)))

    def require_changeable(self) -> None:
        """Raises if another strength of an edit in it could not be written, or would not act.

        Raises:
            ErasureError: With the first obstacle and its remedy.
        """
        self._require_none((*self._absent(), *self._ineffective(adapters=False)))

    @torch.no_grad()
    def require_unchanged(self, values: Mapping[str, Tensor]) -> None:
        """Raises if values that edits wrote have been changed since, but for rounding.

        Args:
            values: Values of parameters, as they were written.

        Raises:
            ErasureError: If some were, as by a LoRA that was fused and unloaded.
        """
        parameters = self.parameters()
        changed = [n for n in self.differing(values) if not _is_rounded(parameters[n], values[n])]
        if changed:
            raise ErasureError(
                f"Another strength of an edit needs the weights of {self.title} as it left them;"
                f" found others in {len(changed)} tensors, {changed[0]} first, as of a LoRA that"
                " was fused and unloaded. Load the pipeline again, and fuse the LoRA once the edit"
                " has its strength."
            )

    def require_whole(self) -> None:
        """Raises unless its weights, if saved, are those of its class.

        Raises:
            ErasureError: If some are elsewhere, or it has LoRA layers or compiled parts, with which
                diffusers does not read it.
        """
        self._require_none(self._absent())
        if any(hasattr(module, "_orig_mod") for module in self.module.modules()):
            raise ErasureError(
                f"An export of whole weights needs {self.title} with its own names; found parts"
                " that torch.compile renamed, with which diffusers does not read it. Compile them"
                " in place (part.compile()), or export first."
            )
        if lora_layers(self.module):
            raise ErasureError(
                f"An export of whole weights needs {self.title} without LoRA layers, with which"
                " diffusers does not read it; found some. Call pipeline.unload_lora_weights()"
                " first, or before it fuse_lora() to export them too."
            )

    def _require_none(self, obstacles: Iterable[tuple[str, str]]) -> None:
        for obstacle, cure in obstacles:
            raise ErasureError(
                f"An edit needs weights of {self.title} that it can write and that act; found"
                f" {obstacle}. {cure}."
            )

    def _absent(self) -> Iterator[tuple[str, str]]:
        """Weights that are not in memory, with the remedy."""
        if any(p.is_meta for p in self.module.parameters()):
            yield (
                "some on the meta device, where sequential CPU offload leaves them",
                "Call apply_edit before enable_sequential_cpu_offload, or"
                " pipeline.remove_all_hooks() first",
            )

    def _unwritable(self) -> Iterator[tuple[str, str]]:
        """Obstacles to writing weights, each with its remedy."""
        modules = list(self.module.modules())
        parameters = list(self.module.parameters())
        yield from self._absent()
        if any(_offloads(m) for m in modules):
            yield (
                "group offloading, which holds copies of them",
                "Call apply_edit before enable_group_offload",
            )
        quantised = next((p for p in parameters if not _is_plain(p)), None)
        if quantised is not None:
            dtype = str(quantised.dtype).removeprefix("torch.")
            yield (
                f"quantised ones ({type(quantised.data).__name__}, {dtype})",
                "Apply the edit in float32, bfloat16 or float16, save the pipeline, and quantise"
                " what was saved",
            )

    def _ineffective(self, adapters: bool) -> Iterator[tuple[str, str]]:
        """Reasons why written weights or adapters would have no effect, each with its remedy."""
        modules = list(self.module.modules())
        if any(_is_fused(m) for m in modules):
            yield (
                "fused attention projections, which act in their place",
                f"Call pipeline.{self.name}.unfuse_qkv_projections() first"
                + ("" if adapters else "; afterwards they can be fused again"),
            )
        if any(getattr(m, "merged_adapters", None) for m in modules):
            yield (
                "a LoRA fused into them, which unfusing would subtract from the edit",
                "Call pipeline.unfuse_lora() first; afterwards it can be fused again",
            )
        if adapters and self._compiled:
            yield (
                "torch.compile, which passes over later hooks",
                "Call apply_edit before torch.compile",
            )


def _equal(parameter: Tensor, value: Tensor) -> bool:
    if parameter.is_meta or parameter.shape != value.shape:
        return False
    return torch.equal(parameter, value.to(parameter))


def _is_rounded(parameter: Tensor, value: Tensor) -> bool:
    """Whether a parameter is a value but for rounding: of a LoRA's unfusing, or of a cast."""
    value = value.to(parameter.device)
    if any(_equal(parameter, value.to(low)) for low in (torch.bfloat16, torch.float16)):
        return True
    error = (parameter.float() - value.float()).norm()
    return bool(error <= _ROUNDING * torch.finfo(parameter.dtype).eps * value.float().norm())


def _is_plain(parameter: nn.Parameter) -> bool:
    return type(parameter.data) is Tensor and parameter.is_floating_point()


def _is_fused(module: nn.Module) -> bool:
    from diffusers.models.attention import AttentionModuleMixin

    # The older `Attention` retains its flag when it is unfused; only its processor is reliable.
    if isinstance(module, AttentionModuleMixin):
        return bool(module.fused_projections)
    return type(getattr(module, "processor", None)).__name__.startswith("Fused")


def _offloads(module: nn.Module) -> bool:
    registry = cast(Any, getattr(module, "_diffusers_hook", None))
    return registry is not None and registry.get_hook("group_offloading") is not None
