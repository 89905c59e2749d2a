"""Removal of this machine's paths and its user's secrets from values and edits."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from erasure_lightning.edits.edit import StoredEdit, read_edit

#: Names of settings that hold secrets.
_SECRET = re.compile(r"(?i)(^|[_.-])(api_?key|key|token|secret|password)$")


def redact_paths(value: Any) -> Any:
    """Nested values with absolute paths shortened to their last part."""
    if isinstance(value, Mapping):
        return {key: redact_paths(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [redact_paths(item) for item in value]
    if isinstance(value, str) and (value.startswith("~") or Path(value).is_absolute()):
        return Path(value).name
    return value


def redact_secrets(value: Any) -> Any:
    """Nested values with None for every key, token, secret or password.

    Lists and mappings are none: words of a concept *key*, a group of prompts of that name.
    """
    if isinstance(value, Mapping):
        return {
            key: None
            if _SECRET.search(str(key)) and not isinstance(item, Mapping | list)
            else redact_secrets(item)
            for key, item in value.items()
        }
    return [redact_secrets(item) for item in value] if isinstance(value, list) else value


def write_redacted_edit(source: Path, target: Path) -> dict[str, Any]:
    """Copies an edit, with `redact_paths` of its metadata.

    Args:
        source: The edit.
        target: The copy; replaced atomically.

    Returns:
        Metadata of the copy, without the config.

    Raises:
        ErasureError: If the edit cannot be read.
    """
    edit = read_edit(source)
    config = edit.metadata.pop("config", "")
    public: dict[str, Any] = redact_paths(edit.metadata)
    full = dict(public)
    if config:
        full["config"] = yaml.safe_dump(redact_paths(yaml.safe_load(config)), sort_keys=False)
    StoredEdit(edit.tensors, full).save(target)
    return public
