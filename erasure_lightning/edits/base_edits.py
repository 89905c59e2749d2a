"""Base edits: the edits beneath an edit, their files, and their application."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from erasure_lightning.edits.changes import Change
from erasure_lightning.edits.components import (
    EditedComponent,
    component_fingerprints,
    is_same_component,
)
from erasure_lightning.edits.edit import StoredEdit, read_edit
from erasure_lightning.edits.stack import applied_edits, changes_by, held_edits
from erasure_lightning.errors import ErasureError
from erasure_lightning.files.writing import EDIT_FILE


def locate_edit(path: str | Path) -> Path:
    """The file of an edit: itself, or the one in a run's folder.

    Raises:
        ErasureError: If the path is none.
    """
    if not isinstance(path, str | Path):
        raise ErasureError(f"An edit needs its file or its run folder as a path; found {path!r}.")
    path = Path(path)
    return path / EDIT_FILE if path.is_dir() else path


def find_base_edits(
    entries: Sequence[Mapping[str, Any]], path: Path | None, title: str
) -> list[Path]:
    """Files of edits that an edit is based on, the lowest first.

    Each is searched at its path of the time of training, at that path in the edit's own folder (as
    in a published one), and under its folder's name beside the edit's own folder; a file is
    accepted if its tensors are the same.

    Args:
        entries: Those edits, as of `StoredEdit.base_edits`.
        path: The edit's file, if it has one.
        title: The edit, for errors.

    Raises:
        ErasureError: If one is not there.
    """
    return [_find(entry, path, title) for entry in entries]


def missing_base_edits(edit: StoredEdit, pipeline: Any) -> list[dict[str, Any]]:
    """The edits that an edit is based on and a pipeline lacks, the lowest first.

    Empty if the components have the weights that the edit was trained on, whatever their origin.

    Args:
        edit: The edit.
        pipeline: A diffusers pipeline, or anything with the same component names.

    Raises:
        ErasureError: If the pipeline holds one at another strength.
    """
    base = edit.base_edits
    names = sorted({name for entry in base for name in entry["components"]})
    modules = {name: EditedComponent(pipeline, name).module for name in names}
    prints = edit.metadata.get("fingerprints", {})
    if all(is_same_component(prints[n], component_fingerprints(m)) for n, m in modules.items()):
        return []
    held = {entry["fingerprint"]: entry["strength"] for entry in held_edits(modules)}
    for entry in base:
        needed = entry["strength"]
        if (strength := held.get(entry["fingerprint"], needed)) != needed:
            raise ErasureError(
                f"{edit.title} needs {entry['edit']} beneath it at strength {needed:g};"
                f" found it at {strength:g}. Set that strength first; once both are applied, it may"
                " be another."
            )
    return [entry for entry in base if entry["fingerprint"] not in held]


def base_changes(edit: StoredEdit, pipeline: Any) -> dict[str, Change]:
    """Parameters before and after the edits that an edit is based on, by component and name.

    Those are weights alone: no edit is based on adapters. Of an edit that a pipeline was loaded
    with, every parameter of its components counts as it is.

    Args:
        edit: The edit.
        pipeline: The pipeline that holds the edit.
    """
    changes: dict[str, Change] = {}
    for entry in edit.base_edits:
        for name in entry["components"]:
            component = EditedComponent(pipeline, name)
            records = {each["fingerprint"]: each for each in applied_edits(component.module)}
            record = records.get(entry["fingerprint"])
            if record is None:
                values = {n: value.detach() for n, value in component.parameters().items()}
                own = {n: Change(value, value) for n, value in values.items()}
            else:
                own = changes_by(component.module, record)
            for parameter, change in own.items():
                key = f"{name}.{parameter}"
                changes[key] = Change(changes.get(key, change).before, change.after)
    return changes


def titles(entries: Sequence[Mapping[str, Any]]) -> str:
    """Methods and concepts of edits, ``UCE of cat, ESD of dog``."""
    return ", ".join(str(entry["edit"]) for entry in entries) or "no edit"


def _find(entry: Mapping[str, Any], path: Path | None, title: str) -> Path:
    recorded = str(entry["path"])
    places = [Path(recorded)] if recorded else []
    if path is not None and recorded:
        file = Path(recorded)
        name = f"{file.parent.name if file.name == EDIT_FILE else ''}/{file.name}".lstrip("/")
        # A downloaded file may be a link, beside which the others are, into a store of contents.
        for folder in (path.absolute().parent, path.resolve().parent):
            places += [folder / recorded, folder.parent / name]
    for place in places:
        file = locate_edit(place)
        if file.is_file() and read_edit(file).fingerprint == entry["fingerprint"]:
            return file
    where = f"{recorded} holds another edit, or none" if recorded else "it was never saved"
    raise ErasureError(
        f"{title} is based on {entry['edit']} ({entry['fingerprint']}), which must be"
        f" applied first; {where}. Call apply_edit with that edit's run first, or give the run as"
        " base_edit (command line: --model.base_edit RUN)."
    )
