"""Writes an applied edit in the form that another tool loads."""

import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import save, save_file
from torch import Tensor, nn

from erasure_lightning.edits.base_edits import base_changes
from erasure_lightning.edits.changes import (
    Change,
    LayerFactors,
    components_of,
    edit_factors,
    low_rank,
)
from erasure_lightning.edits.checkpoint_file import write_checkpoint
from erasure_lightning.edits.components import EditedComponent
from erasure_lightning.edits.edit import StoredEdit
from erasure_lightning.edits.export_format import ExportFormat, PluginFormat
from erasure_lightning.edits.export_request import DTYPES, ExportRequest
from erasure_lightning.edits.image_error import image_error
from erasure_lightning.edits.lora_layouts import (
    diffusers_lora,
    full_differences,
    kohya_lora,
    kohya_metadata,
    unread_by_diffusers,
)
from erasure_lightning.edits.original_component import original_component
from erasure_lightning.edits.stack import applied_edits
from erasure_lightning.errors import ErasureError
from erasure_lightning.files.writing import temporary_path, write_atomically

#: Class of the transformer -> of its text-to-image pipeline.
_FAMILIES = {
    "FluxTransformer2DModel": "FluxPipeline",
    "SD3Transformer2DModel": "StableDiffusion3Pipeline",
}


@dataclass(frozen=True)
class Export:
    """What `export_edit` wrote.

    Args:
        path: The file or folder.
        format: Its format, an `ExportFormat` or the name of another package's.
        ranks: Least and greatest rank of low-rank factors.
        error: Norm of what low-rank factors lose over the norm of the whole change; 0 of the
            others.
        left_out: Changed parameters that the format cannot hold.
        image_error: Mean absolute difference of images, 0..1, if any were generated.
    """

    path: Path
    format: str
    ranks: tuple[int, int] | None = None
    error: float = 0.0
    left_out: list[str] = field(default_factory=list)
    image_error: float | None = None


def check_adapters(edit: StoredEdit, kind: ExportFormat | PluginFormat) -> None:
    """Raises if an edit acts by prompt or image and the format holds weights, or the reverse.

    Raises:
        ErasureError: With the format that holds it.
    """
    kinds = {plan["kind"] for plan in edit.adapters.values()} - {"lora"}
    if kinds and kind is not ExportFormat.ADAPTERS:
        raise ErasureError(
            f"The format {kind} needs changed weights; {edit.title} has adapters"
            f" ({', '.join(sorted(kinds))}) that act by prompt or image and are in no weights."
            " Export it as `adapters`, which apply_edit loads."
        )
    if not kinds and kind is ExportFormat.ADAPTERS:
        raise ErasureError(
            f"The format adapters needs an edit with gated adapters; {edit.title}"
            " changes weights. Export it as `lora` or `diff`."
        )


class HeldEdit(NamedTuple):
    """An edit that a pipeline holds.

    Args:
        edit: The edit.
        pipeline: The pipeline.
        changes: Parameters before and after the edit, at its strength, by component and name.
        strength: Its strength.
    """

    edit: StoredEdit
    pipeline: Any
    changes: Mapping[str, Change]
    strength: float

    @property
    def family(self) -> str:
        """Class of the text-to-image pipeline with these components, as of image-to-image ones."""
        transformer = getattr(self.pipeline, "transformer", None)
        if transformer is not None:
            kind = type(getattr(transformer, "_orig_mod", transformer)).__name__
            return _FAMILIES.get(kind, type(self.pipeline).__name__)
        is_xl = hasattr(self.pipeline, "text_encoder_2")  # it may be loaded without
        return "StableDiffusionXLPipeline" if is_xl else "StableDiffusionPipeline"

    def modules(self, names: Iterable[str]) -> dict[str, nn.Module]:
        """The components that parameters belong to."""
        each = (EditedComponent(self.pipeline, name) for name in components_of(names))
        return {component.name: component.module for component in each}


def write_export(request: ExportRequest, held: HeldEdit) -> Export:
    """Writes an edit that a pipeline holds.

    Args:
        request: Where to, and how.
        held: The edit.

    Raises:
        ErasureError: If the format cannot hold the edit, or the file cannot be written.
    """
    kind = request.kind
    check_adapters(held.edit, kind)
    _check_strength(held.strength, kind)
    dtype = DTYPES[request.dtype]
    match kind:
        case ExportFormat.ADAPTERS:
            held.edit.save(request.path)
        case ExportFormat.CHECKPOINT:
            _write_checkpoint(request, held)
        case ExportFormat.DIFFUSERS:
            parts = vars(held.pipeline).items()
            _require_whole(held, [name for name, part in parts if isinstance(part, nn.Module)])
            _write_new(request.path, held.pipeline.save_pretrained)
        case ExportFormat.COMPONENT:
            _write_components(request, held)
        case ExportFormat.DIFF:
            values = full_differences(held.changes, held.modules(held.changes), held.family)
            _write_tensors(request.path, values, dtype, {"title": held.edit.title})
        case ExportFormat.LORA | ExportFormat.KOHYA_LORA:
            return _write_lora(request, held)
        case PluginFormat():
            content = (held.changes, held.pipeline, held.edit.metadata, dtype)
            _write_new(request.path, lambda new: kind.write(new, *content))
    return Export(request.path, str(kind))


def _check_strength(strength: float, kind: ExportFormat | PluginFormat) -> None:
    """Raises for a strength at which a file would have no effect, or another one.

    Raises:
        ErasureError: With what to set.
    """
    if strength == 0:
        raise ErasureError(
            "An export needs an edit with an effect; found one of strength 0. Set edit.strength."
        )
    if kind is ExportFormat.ADAPTERS and strength != 1:
        raise ErasureError(
            f"The format adapters holds an edit of strength 1; found {strength:g}. Set"
            " edit.strength = 1, and the strength once the file is applied."
        )


def _require_whole(held: HeldEdit, names: Iterable[str]) -> None:
    """Raises unless components, if saved, are the model with the edit and those beneath it.

    Raises:
        ErasureError: If they hold another edit too, or could not be read.
    """
    own = {entry["fingerprint"] for entry in held.edit.base_edits} | {held.edit.fingerprint}
    for name in names:
        component = EditedComponent(held.pipeline, name)
        component.require_whole()
        others = [r["edit"] for r in applied_edits(component.module) if r["fingerprint"] not in own]
        if others:
            raise ErasureError(
                f"An export of whole weights needs {component.title} with {held.edit.title} and"
                f" what it is based on; found {', '.join(others)} in it too. Remove it first, or"
                " call pipeline.save_pretrained to save all edits."
            )


def _write_checkpoint(request: ExportRequest, held: HeldEdit) -> None:
    beneath = base_changes(held.edit, held.pipeline)
    whole = {name: Change(each.after, each.after) for name, each in beneath.items()}
    changes = whole | {**held.changes}
    source = Path(request.checkpoint or "")
    write_checkpoint(source, request.path, changes, held.modules(changes), beneath)


def _write_components(request: ExportRequest, held: HeldEdit) -> None:
    modules = held.modules([*held.changes, *base_changes(held.edit, held.pipeline)])
    _require_whole(held, modules)

    def write(folder: Path) -> None:
        folder.mkdir()
        for name, module in modules.items():
            if request.layout == "original":
                about = {"format": "pt", "title": held.edit.title}
                file = folder / f"{name}.safetensors"
                save_file(original_component(name, module), file, about)
            else:
                module.save_pretrained(folder / name)  # type: ignore[operator]

    _write_new(request.path, write)


def _write_lora(request: ExportRequest, held: HeldEdit) -> Export:
    """Writes low-rank factors of the components whose LoRA is read."""
    modules = held.modules(held.changes)
    for name in modules if request.images else ():
        EditedComponent(held.pipeline, name).require_changeable()
    is_diffusers = request.kind is ExportFormat.LORA
    unread = unread_by_diffusers(modules, held.family) if is_diffusers else []
    lowered = low_rank(held.changes, _own_factors(held), request.rank, request.energy, unread)
    if is_diffusers:
        values = diffusers_lora(lowered.factors)
        about = {"title": held.edit.title}
    else:
        values = kohya_lora(lowered.factors, modules, held.family)
        about = kohya_metadata(values, held.edit.title, modules, held.family)
    _write_tensors(request.path, values, DTYPES[request.dtype], about)
    error = None
    if request.images:
        prompt = next(iter(held.edit.concepts), "")
        error = image_error(held.pipeline, held.changes, lowered, prompt, request.images)
    ranks = [each.rank for each in lowered.factors.values()]
    span = (min(ranks), max(ranks))
    return Export(request.path, request.format, span, lowered.error, lowered.left_out, error)


def _own_factors(held: HeldEdit) -> dict[str, LayerFactors]:
    """A low-rank edit's factors by layer, where they are all that it changes there.

    Of a layer that a closed form has changed beneath its factors, and of one in another
    model than the edit's base model, the change is more than their product.
    """
    fingerprint = held.edit.fingerprint
    before = {
        f"{name}.{parameter}": value
        for name, module in held.modules(held.changes).items()
        for record in applied_edits(module)
        if record["fingerprint"] == fingerprint
        for parameter, value in record.get("before", {}).items()
    }
    return {
        layer: each
        for layer, each in edit_factors(held.edit.tensors, held.strength).items()
        if (own := held.edit.tensors.get(f"{layer}.weight")) is None  # a difference of any weight
        or _is_same(own, before[f"{layer}.weight"])
    }


def _is_same(weight: Tensor, other: Tensor) -> bool:
    """Whether weights are the same, in a precision that one of them may be rounded to."""
    precisions = (other.dtype, torch.bfloat16, torch.float16)
    return any(torch.equal(weight.to(other.device, p), other.to(p)) for p in precisions)


def _write_new(path: Path, write: Callable[[Path], Any]) -> None:
    """Writes a file or folder in a temporary folder, which is removed if it fails.

    Raises:
        ErasureError: If it cannot be written.
    """
    temporary = temporary_path(path)
    try:
        temporary.mkdir(parents=True)
        write(temporary / path.name)
        (temporary / path.name).replace(path)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ErasureError(f"Could not write {path}: {reason}.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_tensors(
    path: Path, tensors: dict[str, Tensor], dtype: torch.dtype, metadata: dict[str, str]
) -> None:
    values = {name: value.detach().cpu().to(dtype).contiguous() for name, value in tensors.items()}
    write_atomically(path, save(values, metadata={"format": "pt", **metadata}))
