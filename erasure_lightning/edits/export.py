"""Writes an applied edit in the form that another tool loads."""

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save, save_file
from torch import Tensor, nn

from erasure_lightning.checks import require
from erasure_lightning.edits.base_edits import base_changes
from erasure_lightning.edits.changes import Change, LowRank, components_of, low_rank
from erasure_lightning.edits.checkpoint_file import write_checkpoint
from erasure_lightning.edits.edit import edit_title, write_edit
from erasure_lightning.edits.export_format import ExportFormat, PluginFormat, find_format
from erasure_lightning.edits.image_error import image_error
from erasure_lightning.edits.lora_layouts import (
    diffusers_lora,
    full_differences,
    kohya_lora,
    kohya_metadata,
    unread_by_diffusers,
)
from erasure_lightning.edits.original_component import original_component
from erasure_lightning.errors import ErasureError
from erasure_lightning.files.writing import write_atomically

#: Precisions of exported tensors.
_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

#: Layouts of exported components: a folder of diffusers each, or a file with the authors' names.
_LAYOUTS = ("diffusers", "original")

#: Formats of differences, whose precision can be chosen.
_DIFFERENCES = (ExportFormat.LORA, ExportFormat.KOHYA_LORA, ExportFormat.DIFF)


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
        image_error: Mean absolute difference of images, 0..1, if any were drawn.
    """

    path: Path
    format: str
    ranks: tuple[int, int] | None = None
    error: float = 0.0
    left_out: list[str] = field(default_factory=list)
    image_error: float | None = None


@dataclass(frozen=True)
class ExportRequest:
    """Where to and how an edit is exported; raises for what no edit can be exported by.

    Args:
        path: The new file, or the new folder for ``diffusers`` and ``component``.
        format: One of `export_formats`.
        checkpoint: The user's single file, for the format ``checkpoint``.
        rank: Of low-rank factors of a full-rank change, at least 1.
        energy: Share of each layer's squared change that they retain, above 0 and at most 1; 0.999
            where neither it nor ``rank`` is given.
        dtype: Precision of differences: ``float32``, ``float16`` or ``bfloat16``.
        layout: Of ``component``: ``diffusers``, or ``original`` for a file of each component with
            the names of the model's authors.
        images: Images of the concept that are drawn with the edit and with its low-rank factors,
            for `Export.image_error`.

    Raises:
        ErasureError: If the format, the precision or the layout is unknown, the ending is another
            tool's, or something exists at the path.
    """

    path: Path
    format: str
    checkpoint: str | Path | None = None
    rank: int | None = None
    energy: float | None = None
    dtype: str = "float32"
    layout: str = "diffusers"
    images: int = 0

    def __post_init__(self) -> None:
        kind = self.kind
        if self.path.exists():
            raise ErasureError(
                f"The export needs a new path; {self.path} exists. Give another --out."
            )
        if kind.suffix and not self.path.name.endswith(kind.suffix):
            raise ErasureError(
                f"A file of the format {kind} needs a name that ends in {kind.suffix}, by which"
                f" other tools know it; found {self.path.name!r}."
            )
        if self.dtype not in _DTYPES:
            raise ErasureError(f"dtype needs one of {', '.join(_DTYPES)}; found {self.dtype!r}.")
        has_precision = kind in _DIFFERENCES or isinstance(kind, PluginFormat)
        if self.dtype != "float32" and not has_precision:
            raise ErasureError(
                f"dtype is for {', '.join(_DIFFERENCES)}; {kind} has the precision of its model."
            )
        if self.layout not in _LAYOUTS:
            raise ErasureError(f"layout needs one of {', '.join(_LAYOUTS)}; found {self.layout!r}.")
        if self.layout != "diffusers" and kind is not ExportFormat.COMPONENT:
            raise ErasureError(f"layout is for component; {kind} has one layout.")
        require("An export", at_least=0, images=self.images)
        if self.images and kind not in (ExportFormat.LORA, ExportFormat.KOHYA_LORA):
            raise ErasureError(f"images compares low-rank factors with the edit; {kind} has none.")
        if kind is ExportFormat.CHECKPOINT and self.checkpoint is None:
            raise ErasureError(
                "The format checkpoint needs the single file that the edit is written into:"
                " --checkpoint FILE."
            )

    @property
    def kind(self) -> ExportFormat | PluginFormat:
        """The format.

        Raises:
            ErasureError: If there is none of that name, or it cannot be loaded.
        """
        return find_format(self.format)


def check_adapters(metadata: Mapping[str, Any], kind: ExportFormat | PluginFormat) -> None:
    """Raises if an edit acts by prompt or image and the format holds weights, or the reverse.

    Raises:
        ErasureError: With the format that holds it.
    """
    kinds = {plan["kind"] for plan in metadata.get("adapters", {}).values()} - {"lora"}
    if kinds and kind is not ExportFormat.ADAPTERS:
        raise ErasureError(
            f"The format {kind} needs changed weights; {edit_title(metadata)} has adapters"
            f" ({', '.join(sorted(kinds))}) that act by prompt or image and are in no weights."
            " Export it as `adapters`, which apply_edit loads."
        )
    if not kinds and kind is ExportFormat.ADAPTERS:
        raise ErasureError(
            f"The format adapters needs an edit with gated adapters; {edit_title(metadata)}"
            " changes weights. Export it as `lora` or `diff`."
        )


def write_export(
    request: ExportRequest,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, Any],
    pipeline: Any,
    changes: Mapping[str, Change],
) -> Export:
    """Writes an edit that a pipeline holds.

    Args:
        request: Where to, and how.
        tensors: The edit's tensors.
        metadata: The edit's metadata.
        pipeline: The pipeline that holds it.
        changes: Parameters before and after the edit, by component and name.

    Raises:
        ErasureError: If the format cannot hold the edit, or the file cannot be written.
    """
    kind = request.kind
    check_adapters(metadata, kind)
    path = request.path
    dtype = _DTYPES[request.dtype]
    family = type(pipeline).__name__
    holds_base = kind in (ExportFormat.CHECKPOINT, ExportFormat.COMPONENT)
    beneath = base_changes(metadata, pipeline) if holds_base else {}
    names = components_of([*changes, *beneath])
    modules: dict[str, nn.Module] = {name: getattr(pipeline, name) for name in names}
    title = edit_title(metadata)
    match kind:
        case ExportFormat.ADAPTERS:
            write_edit(path, tensors, metadata)
        case ExportFormat.CHECKPOINT:
            source = Path(request.checkpoint or "")
            whole = {name: Change(each.after, each.after) for name, each in beneath.items()}
            write_checkpoint(source, path, whole | {**changes}, modules, beneath)
        case ExportFormat.DIFFUSERS:
            _write_new(path, pipeline.save_pretrained)
        case ExportFormat.COMPONENT:
            write = _save_original if request.layout == "original" else _save_components
            _write_new(path, lambda folder: write(modules, folder, title))
        case ExportFormat.DIFF:
            values = full_differences(changes, modules, family)
            _write_tensors(path, values, dtype, {"title": title})
        case ExportFormat.LORA | ExportFormat.KOHYA_LORA:
            lowered = _lowered(request, tensors, changes, modules, family)
            return replace(
                _write_lora(request, lowered, modules, family, title),
                image_error=_image_error(request, lowered, metadata, pipeline, changes),
            )
        case PluginFormat():
            _write_new(path, lambda new: kind.write(new, changes, pipeline, metadata, dtype))
            return Export(path, kind.name)
    return Export(path, kind)


def _write_lora(
    request: ExportRequest,
    lowered: LowRank,
    modules: Mapping[str, nn.Module],
    family: str,
    title: str,
) -> Export:
    if request.format == ExportFormat.LORA:
        values = diffusers_lora(lowered.factors)
        about = {"title": title}
    else:
        values = kohya_lora(lowered.factors, modules, family)
        about = kohya_metadata(values, title, family)
    _write_tensors(request.path, values, _DTYPES[request.dtype], about)
    ranks = [each.rank for each in lowered.factors.values()]
    span = (min(ranks), max(ranks))
    return Export(request.path, ExportFormat(request.format), span, lowered.error, lowered.left_out)


def _lowered(
    request: ExportRequest,
    tensors: Mapping[str, Tensor],
    changes: Mapping[str, Change],
    modules: Mapping[str, nn.Module],
    family: str,
) -> LowRank:
    """Low-rank factors of the components whose LoRA is read."""
    unread = unread_by_diffusers(modules, family) if request.kind is ExportFormat.LORA else []
    return low_rank(changes, tensors, request.rank, request.energy, unread)


def _image_error(
    request: ExportRequest,
    lowered: LowRank,
    metadata: Mapping[str, Any],
    pipeline: Any,
    changes: Mapping[str, Change],
) -> float | None:
    """`image_error` for the first concept, where images are requested."""
    if not request.images:
        return None
    prompt = next((concept["name"] for concept in metadata.get("concepts", [])), "")
    return image_error(pipeline, changes, lowered, prompt, request.images)


def _save_components(modules: Mapping[str, nn.Module], folder: Path, _: str) -> None:
    for name, module in modules.items():
        module.save_pretrained(folder / name)  # type: ignore[operator]


def _save_original(modules: Mapping[str, nn.Module], folder: Path, title: str) -> None:
    folder.mkdir()
    for name, module in modules.items():
        file = folder / f"{name}.safetensors"
        save_file(original_component(name, module), file, {"format": "pt", "title": title})


def _write_new(path: Path, write: Callable[[Path], Any]) -> None:
    """Writes a file or folder in a temporary folder, which is removed if it fails.

    Raises:
        ErasureError: If it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
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
