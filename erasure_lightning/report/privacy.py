"""What tells of the machine a run was made on, and is of no use on another: its paths."""

import re
from collections.abc import Mapping
from typing import Any

#: A path from a root, a home or a drive, as a whole text.
_WHOLE = re.compile(r"(file:/*)?(/|~|[A-Za-z]:[\\/]|\\\\)[^\n]*[\\/]")

#: The same within a text; its end is what the path names.
_WITHIN = re.compile(
    r"(?<![\w:/.~<])(?:file:/*)?(?:~?/|[A-Za-z]:[\\/])(?:[^\s'\",;:|<>()\[\]{}/\\]+[\\/])+"
)

SHORTENED = "…/"


def without_paths(value: Any) -> Any:
    """Plain values, with ``…/`` for the folders of absolute paths and of those that climb; names of
    files remain.
    """
    if isinstance(value, Mapping):
        return {str(key): without_paths(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_paths(item) for item in value]
    return _shortened(value) if isinstance(value, str) else value


def _shortened(text: str) -> str:
    """One text. A path may hold spaces, so that where the text is one, all but its last name goes."""
    if _WHOLE.match(text) or ".." in re.split(r"[\\/]", text):
        return SHORTENED + (re.split(r"[\\/]+", text.rstrip("\\/"))[-1])
    return _WITHIN.sub(SHORTENED, text)
