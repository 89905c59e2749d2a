"""Removes paths of a run's machine."""

import re
from collections.abc import Mapping
from typing import Any

#: A text that is one path, from a root, a home or a drive.
_PATH = re.compile(r"(file:/*)?(/|~|[A-Za-z]:[\\/]|\\\\)[^\n]*[\\/]")

#: The folders of such a path within a text.
_FOLDERS = re.compile(
    r"(?<![\w:/.~<])(?:file:/*)?(?:~?/|[A-Za-z]:[\\/])(?:[^\s'\",;:|<>()\[\]{}/\\]+[\\/])+"
)

#: Replaces the folders of a path.
PATH_PLACEHOLDER = "…/"


def without_paths(value: Any) -> Any:
    """Plain values without the folders of absolute paths and of those with ``..``.

    ``…/`` is put in the place of the folders; names of files remain.
    """
    if isinstance(value, Mapping):
        return {str(key): without_paths(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_paths(item) for item in value]
    return _without_paths(value) if isinstance(value, str) else value


def _without_paths(text: str) -> str:
    # A path may hold spaces: of a text that is one path, only the last name remains.
    if _PATH.match(text) or ".." in re.split(r"[\\/]", text):
        return PATH_PLACEHOLDER + re.split(r"[\\/]+", text.rstrip("\\/"))[-1]
    return _FOLDERS.sub(PATH_PLACEHOLDER, text)
