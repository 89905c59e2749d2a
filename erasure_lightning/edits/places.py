"""The components of a pipeline that hold an edit, with what is recorded of it there."""

from typing import Any

from torch import nn

from erasure_lightning.edits.components import EditedComponent
from erasure_lightning.edits.edit import StoredEdit
from erasure_lightning.edits.installation import holds_edit
from erasure_lightning.edits.stack import AppliedEdit, applied_edits
from erasure_lightning.errors import ErasureError


def edit_records(edit: StoredEdit, pipeline: Any) -> dict[str, AppliedEdit]:
    """What is recorded of an edit in a pipeline, by component; empty where there is no pipeline.

    Args:
        edit: The edit.
        pipeline: A diffusers pipeline, or anything with the same component names; may be None.
    """
    if pipeline is None:
        return {}
    fingerprint = edit.fingerprint
    return {
        name: record
        for name in edit.components
        if isinstance(getattr(pipeline, name, None), nn.Module)
        for record in applied_edits(EditedComponent(pipeline, name).module)
        if record["fingerprint"] == fingerprint
    }


def edit_places(edit: StoredEdit, pipeline: Any) -> list[tuple[EditedComponent, AppliedEdit]]:
    """The components that hold an edit, each with its record.

    Args:
        edit: The edit.
        pipeline: A diffusers pipeline, or anything with the same component names; may be None.

    Raises:
        ErasureError: If there are none, or their former weights are unknown.
    """
    if pipeline is None:
        raise ErasureError(
            f"{edit.title} needs to be applied to a pipeline first; call"
            " apply_edit(edit, pipeline)."
        )
    records = edit_records(edit, pipeline)
    if not records and holds_edit(edit, pipeline):
        raise ErasureError(
            f"{edit.title} needs the weights before it; found a pipeline that was loaded with the"
            " edit in it. Load the pipeline without it, and apply it there."
        )
    for name in edit.components:
        if name not in records:
            raise ErasureError(
                f"{edit.title} needs to be in {EditedComponent(pipeline, name).title}; found it"
                " removed, or the component replaced. Apply it again."
            )
    return [(EditedComponent(pipeline, name), record) for name, record in records.items()]
