"""`export_edit`: an edit in the form that another tool loads."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from erasure_lightning.api.base_model import load_base_model
from erasure_lightning.edits.applied import Edit, load_edit
from erasure_lightning.edits.export import Export, check_adapters
from erasure_lightning.edits.export_request import ExportRequest
from erasure_lightning.edits.installation import holds_edit


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
    layout: str = "diffusers",
    images: int = 0,
) -> Export:
    """Write an edit in the form that another tool loads.

    Of an edit that is based on others, ``diffusers``, ``component`` and ``checkpoint`` hold all of
    them, and the formats of differences this one alone.

    Args:
        edit: An edit, its file, or the run folder that holds it.
        path: The new file, or the new folder for ``diffusers`` and ``component``.
        format: One of `export_formats`.
        pipeline: The pipeline of the base model, with or without the edit; by default the one
            that holds the edit, else it is loaded by the name in the edit's metadata.
        checkpoint: The user's single file, for the format ``checkpoint``.
        rank: Rank of low-rank factors of a full-rank change, at least 1.
        energy: Share of each layer's squared change that low-rank factors retain, above 0 and at
            most 1; 0.999 where neither it nor ``rank`` is given.
        dtype: Precision of differences: ``float32``, ``float16`` or ``bfloat16``.
        layout: Layout of ``component``: ``diffusers``, or ``original`` for a file of each
            component with the names of the model's authors.
        images: Images of the first concept, generated with the edit and with its low-rank factors,
            for the ``image_error`` of what is returned.

    Returns:
        What was written, and what a low-rank format loses.

    Raises:
        ErasureError: If something exists at the path, the format cannot hold the edit, a number is
            out of range, or the edit has another base model.

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
    options: dict[str, Any] = {
        "checkpoint": checkpoint,
        "rank": rank,
        "energy": energy,
        "dtype": dtype,
        "layout": layout,
        "images": images,
    }
    request = ExportRequest(Path(path), format, **options)
    edit = edit if isinstance(edit, Edit) else load_edit(edit)
    check_adapters(edit, request.kind)
    with _applied(edit, pipeline) as held:
        return held.export(path, format, **options)


@contextmanager
def _applied(edit: Edit, pipeline: Any) -> Iterator[Edit]:
    """The edit in a pipeline, which is left as it was.

    Raises:
        ErasureError: If the edit does not fit the pipeline.
    """
    if edit.pipeline is not None and pipeline in (None, edit.pipeline):
        yield edit
        return
    if pipeline is None:
        pipeline = load_base_model(edit.metadata).to_pipeline()
    held = holds_edit(edit, pipeline)
    own = Edit(edit.tensors, edit.metadata, edit.path).apply(pipeline)
    strength = own.strength
    own.strength = edit.strength
    try:
        yield own
    finally:
        if held:
            own.strength = strength
        else:
            own.remove()
