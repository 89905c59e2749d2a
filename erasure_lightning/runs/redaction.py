"""What may leave this machine: values and edits without its folders, and without what its user logs
in with.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from erasure_lightning.edits.edit import read_edit, write_edit

#: Names of settings that are nobody else's business.
_SECRET = re.compile(r"(?i)(^|[_.-])(api_?key|key|token|secret|password)$")


def redact_paths(value: Any) -> Any:
    """Plain values in which paths that say where this machine keeps things are cut to their last
    name.
    """
    if isinstance(value, Mapping):
        return {key: redact_paths(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [redact_paths(item) for item in value]
    if isinstance(value, str) and (value.startswith("~") or Path(value).is_absolute()):
        return Path(value).name
    return value


def redact_secrets(value: Any) -> Any:
    """Plain values in which whatever is called a key, token, secret or password is None."""
    if isinstance(value, Mapping):
        return {
            key: None if _SECRET.search(str(key)) else redact_secrets(item)
            for key, item in value.items()
        }
    return [redact_secrets(item) for item in value] if isinstance(value, list) else value


def write_redacted_edit(source: Path, target: Path) -> dict[str, Any]:
    """Copy an edit with `redact_paths` metadata.

    Args:
        source: The edit.
        target: The copy; replaced atomically.

    Returns:
        What the copy says of itself, the config aside.

    Raises:
        ErasureError: If the edit cannot be read.
    """
    tensors, metadata = read_edit(source)
    config = metadata.pop("config", "")
    public: dict[str, Any] = redact_paths(metadata)
    written = (
        {"config": yaml.safe_dump(redact_paths(yaml.safe_load(config)), sort_keys=False)}
        if config
        else {}
    )
    write_edit(target, tensors, public | written)
    return public
