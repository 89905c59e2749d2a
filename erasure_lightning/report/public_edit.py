"""An edit, and those that it is based on, without paths of the machine and secrets."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from erasure_lightning.edits.base_edits import find_base_edits, titles
from erasure_lightning.edits.edit import StoredEdit, read_edit
from erasure_lightning.errors import ErasureError
from erasure_lightning.files.writing import EDIT_FILE
from erasure_lightning.report.privacy import without_paths
from erasure_lightning.runs.redaction import redact_secrets

#: Folder beside a published edit, with a folder for each edit beneath it, the lowest first.
_BASE_EDITS = "base-edits"


def write_public_edits(source: Path, folder: Path) -> None:
    """Copy an edit and its base edits without paths of the machine and secrets in their metadata.

    The base edits are ``base-edits/0/edit.safetensors`` and so on, the lowest first; the metadata
    names them there, where `find_base_edits` finds them wherever the folder lies.

    Args:
        source: The edit's file.
        folder: An empty folder, which gets the copies.

    Raises:
        ErasureError: If a base edit is not found.
    """
    edit = read_edit(source)
    places = {
        entry["fingerprint"]: f"{_BASE_EDITS}/{number}/{EDIT_FILE}"
        for number, entry in enumerate(edit.base_edits)
    }
    for entry in edit.base_edits:
        target = folder / places[entry["fingerprint"]]
        target.parent.mkdir(parents=True)
        beneath = read_edit(_base_edit(entry, edit.title, source))
        StoredEdit(beneath.tensors, _published(beneath.metadata, places)).save(target)
    StoredEdit(edit.tensors, _published(edit.metadata, places)).save(folder / EDIT_FILE)


def public_metadata(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """An edit's metadata without paths of the machine and secrets."""
    public: dict[str, Any] = redact_secrets(without_paths(metadata))
    return public


def public_yaml(text: str) -> str:
    """A config's text without paths and secrets; unchanged if it has none."""
    content = yaml.safe_load(text) if text else None
    public = redact_secrets(without_paths(content))
    if public == content:
        return text
    return yaml.safe_dump(public, sort_keys=False, allow_unicode=True)


def _published(metadata: Mapping[str, Any], places: Mapping[str, str]) -> dict[str, Any]:
    """Metadata of a published edit, whose base edits are at their places in the folder."""
    private = dict(metadata)
    config = private.pop("config", "")
    public = public_metadata(private)
    if config:
        public["config"] = public_yaml(config)
    for entry in public.get("base_edits", []):
        entry["path"] = places.get(entry["fingerprint"], entry["path"])
    return public


def _base_edit(entry: Mapping[str, Any], title: str, source: Path) -> Path:
    """The file of an edit that one is based on.

    Raises:
        ErasureError: If it is not found.
    """
    try:
        return find_base_edits([entry], source, title)[0]
    except ErasureError as error:
        raise ErasureError(
            f"A push of {title} needs the run of {titles([entry])}, on which it is"
            f" based and without which nobody can apply it; found none at"
            f" {entry['path'] or 'any path'}, nor beside {source.parent}. Put that run there."
        ) from error
