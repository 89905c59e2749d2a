"""The components of a pipeline that hold an edit, with what is recorded of it there."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from erasure_lightning.edits.changes import components_of
from erasure_lightning.edits.components import EditedComponent
from erasure_lightning.edits.edit import edit_title
from erasure_lightning.edits.fingerprints import edit_fingerprint
from erasure_lightning.edits.installation import holds_edit
from erasure_lightning.edits.stack import AppliedEdit, applied_edits
from erasure_lightning.errors import ErasureError


def edit_records(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, Any], pipeline: Any
) -> dict[str, AppliedEdit]:
    """What is recorded of an edit in a pipeline, by component; empty where there is no pipeline.

    Args:
        tensors: Edited values by component and name.
        metadata: The edit's metadata.
        pipeline: A diffusers pipeline, or anything with the same component names; may be None.
    """
    if pipeline is None:
        return {}
    fingerprint = edit_fingerprint(tensors, metadata)
    return {
        name: record
        for name in components_of(tensors)
        if isinstance(getattr(pipeline, name, None), nn.Module)
        for record in applied_edits(EditedComponent(pipeline, name).module)
        if record["fingerprint"] == fingerprint
    }


def edit_places(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, Any], pipeline: Any
) -> list[tuple[EditedComponent, AppliedEdit]]:
    """The components that hold an edit, each with its record.

    Args:
        tensors: Edited values by component and name.
        metadata: The edit's metadata.
        pipeline: A diffusers pipeline, or anything with the same component names; may be None.

    Raises:
        ErasureError: If there are none, or their former weights are unknown.
    """
    title = edit_title(metadata)
    if pipeline is None:
        raise ErasureError(
            f"{title} needs to be applied to a pipeline first; call apply_edit(edit, pipeline)."
        )
    records = edit_records(tensors, metadata, pipeline)
    if not records and holds_edit(tensors, metadata, pipeline):
        raise ErasureError(
            f"{title} needs the weights before it; found a pipeline that was loaded with the"
            " edit in it. Load the pipeline without it, and apply it there."
        )
    for name in components_of(tensors):
        if name not in records:
            raise ErasureError(
                f"{title} needs to be in {EditedComponent(pipeline, name).title}; found it"
                " removed, or the component replaced. Apply it again."
            )
    return [(EditedComponent(pipeline, name), record) for name, record in records.items()]
