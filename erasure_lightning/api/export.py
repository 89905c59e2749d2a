"""`export_edit`: an edit in the form that another tool loads."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from erasure_lightning.edits.applied import Edit, load_edit
from erasure_lightning.edits.changes import Change, components_of, low_rank
from erasure_lightning.edits.checkpoint_file import write_checkpoint
from erasure_lightning.edits.edit import edit_title, holds_edit
from erasure_lightning.edits.export_format import ExportFormat
from erasure_lightning.edits.lora_layouts import (
    diffusers_lora,
    full_differences,
    kohya_lora,
    kohya_metadata,
)
from erasure_lightning.errors import ErasureError
from erasure_lightning.files.writing import write_atomically

#: Precisions of exported tensors.
_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

#: Formats that are folders.
_FOLDERS = (ExportFormat.DIFFUSERS, ExportFormat.COMPONENT)

#: Formats of differences, whose precision can be chosen.
_DIFFERENCES = (ExportFormat.LORA, ExportFormat.KOHYA_LORA, ExportFormat.DIFF)


@dataclass(frozen=True)
class Export:
    """What `export_edit` wrote.

    Args:
        path: The file or folder.
        format: Its format.
        ranks: Least and greatest rank of low-rank factors.
        error: Norm of what low-rank factors lose over the norm of the whole change; 0 of the
            others.
        left_out: Changed parameters that the format cannot hold.
    """

    path: Path
    format: ExportFormat
    ranks: tuple[int, int] | None = None
    error: float = 0.0
    left_out: list[str] = field(default_factory=list)


def export_edit(
    edit: Edit | str | Path,
    path: str | Path,
    format: str = "lora",
    *,
    pipeline: Any = None,
    checkpoint: str | Path | None = None,
    rank: int | None = None,
    energy: float | None = None,
    dtype: str = "float32",
) -> Export:
    """Write an edit in the form that another tool loads.

    Of an edit that rests on others, ``diffusers`` and ``component`` hold all of them, and the
    formats of differences this one alone.

    Args:
        edit: An edit, its file, or the run folder that holds it.
        path: The new file, or the new folder for ``diffusers`` and ``component``.
        format: One of `ExportFormat`.
        pipeline: The pipeline that the edit was made on, with or without it; by default the one
            that holds the edit, else it is loaded by the name in the edit's metadata.
        checkpoint: The user's single file, for the format ``checkpoint``.
        rank: Of low-rank factors of a full-rank change, at least 1.
        energy: Share of each layer's squared change that low-rank factors retain, above 0 and at
            most 1; 0.99 where neither it nor ``rank`` is given.
        dtype: Precision of differences: ``float32``, ``float16`` or ``bfloat16``.

    Returns:
        What was written, and what a low-rank format loses.

    Raises:
        ErasureError: If something exists at the path, the format cannot hold the edit, a number is
            out of range, or the edit was made on another model.

    Example:
        >>> import tempfile
        >>> from erasure_lightning import erase, export_edit
        >>> from erasure_lightning.backbones.tiny import TinyBackbone
        >>> pipeline = TinyBackbone().to_pipeline()
        >>> edit = erase(pipeline, "cat", method="UCE", anchor="dog", progress_bar=False)
        >>> folder = tempfile.mkdtemp()
        >>> exported = export_edit(edit, f"{folder}/no-cat.safetensors", "lora", energy=1)
        >>> exported.error < 1e-5
        True
    """
    kind = _format(format)
    path = Path(path)
    if path.exists():
        raise ErasureError(f"The export needs a new path; {path} exists. Give another --out.")
    if kind not in _FOLDERS and path.suffix != ".safetensors":
        raise ErasureError(
            f"A file of the format {kind} needs a name that ends in .safetensors, by which other"
            f" tools know it; found {path.name!r}."
        )
    if dtype not in _DTYPES:
        raise ErasureError(f"dtype needs one of {', '.join(_DTYPES)}; found {dtype!r}.")
    if dtype != "float32" and kind not in _DIFFERENCES:
        raise ErasureError(
            f"dtype is for {', '.join(_DIFFERENCES)}; {kind} has the precision of its model."
        )
    edit = edit if isinstance(edit, Edit) else load_edit(edit)
    _check_adapters(edit, kind)
    if kind is ExportFormat.ADAPTERS:
        return Export(edit.save(path), kind)
    with _applied(edit, pipeline) as (held, changes):
        return _write(edit, held, changes, path, kind, checkpoint, (rank, energy), _DTYPES[dtype])


def _format(name: str) -> ExportFormat:
    try:
        return ExportFormat(name)
    except ValueError as error:
        import difflib

        near = difflib.get_close_matches(name, [each.value for each in ExportFormat], n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ErasureError(
            f"The format needs to be one of {', '.join(ExportFormat)}; found {name!r}.{hint}"
        ) from error


def _check_adapters(edit: Edit, kind: ExportFormat) -> None:
    """Raises if the edit acts by prompt or image and the format holds weights, or the reverse."""
    kinds = {plan["kind"] for plan in edit.metadata.get("adapters", {}).values()} - {"lora"}
    if kinds and kind is not ExportFormat.ADAPTERS:
        raise ErasureError(
            f"The format {kind} needs changed weights; {edit_title(edit.metadata)} has adapters"
            f" ({', '.join(sorted(kinds))}) that act by prompt or image and are in no weights."
            " Export it as `adapters`, which apply_edit loads."
        )
    if not kinds and kind is ExportFormat.ADAPTERS:
        raise ErasureError(
            f"The format adapters needs an edit with gated adapters; {edit_title(edit.metadata)}"
            " changes weights. Export it as `lora` or `diff`."
        )


@contextmanager
def _applied(edit: Edit, pipeline: Any) -> Iterator[tuple[Any, dict[str, Change]]]:
    """A pipeline that holds the edit, and what it changes; it is left as it was.

    Raises:
        ErasureError: If the edit does not fit the pipeline.
    """
    if edit.pipeline is not None and pipeline in (None, edit.pipeline):
        yield edit.pipeline, edit.changes()
        return
    if pipeline is None:
        from erasure_lightning.backbones.loading import load_backbone

        pipeline = load_backbone(str(edit.metadata["backbone"])).to_pipeline()
    held = holds_edit(edit.tensors, edit.metadata, pipeline)
    own = Edit(edit.tensors, edit.metadata, edit.path).apply(pipeline)
    own.strength = edit.strength
    try:
        yield pipeline, own.changes()
    finally:
        if not held:
            own.remove()


def _write(
    edit: Edit,
    pipeline: Any,
    changes: dict[str, Change],
    path: Path,
    kind: ExportFormat,
    checkpoint: str | Path | None,
    size: tuple[int | None, float | None],
    dtype: torch.dtype,
) -> Export:
    names = components_of(changes)
    modules: dict[str, nn.Module] = {name: getattr(pipeline, name) for name in names}
    family = type(pipeline).__name__
    title = edit_title(edit.metadata)
    if kind is ExportFormat.CHECKPOINT:
        if checkpoint is None:
            raise ErasureError(
                "The format checkpoint needs the single file that the edit is written into:"
                " --checkpoint FILE."
            )
        write_checkpoint(Path(checkpoint), path, changes, modules)
        return Export(path, kind)
    if kind is ExportFormat.DIFFUSERS:
        _write_folder(path, pipeline.save_pretrained)
        return Export(path, kind)
    if kind is ExportFormat.COMPONENT:
        _write_folder(path, lambda folder: _save_components(modules, folder))
        return Export(path, kind)
    if kind is ExportFormat.DIFF:
        _write_tensors(path, full_differences(changes, modules, family), dtype, {"title": title})
        return Export(path, kind)
    lowered = low_rank(changes, edit.tensors, *size)
    if kind is ExportFormat.LORA:
        tensors = diffusers_lora(lowered.factors)
        metadata = {"title": title}
    else:
        tensors = kohya_lora(lowered.factors, modules, family)
        metadata = kohya_metadata(tensors, title, family)
    _write_tensors(path, tensors, dtype, metadata)
    ranks = [each.rank for each in lowered.factors.values()]
    return Export(path, kind, (min(ranks), max(ranks)), lowered.error, lowered.left_out)


def _save_components(modules: dict[str, nn.Module], folder: Path) -> None:
    for name, module in modules.items():
        module.save_pretrained(folder / name)  # type: ignore[operator]


def _write_folder(path: Path, write: Callable[[Path], Any]) -> None:
    """Writes a folder under a temporary name; nothing is left of one that fails.

    Raises:
        ErasureError: If it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(temporary)
        temporary.replace(path)
    except OSError as error:
        raise ErasureError(f"Could not write {path}: {error.strerror or error}.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_tensors(
    path: Path, tensors: dict[str, Tensor], dtype: torch.dtype, metadata: dict[str, str]
) -> None:
    values = {name: value.detach().cpu().to(dtype).contiguous() for name, value in tensors.items()}
    write_atomically(path, save(values, metadata={"format": "pt", **metadata}))
