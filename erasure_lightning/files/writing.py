"""Names of what a run writes, how it is written and read. Imports next to nothing: the light
commands need it too.
"""

import json
import math
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from erasure_lightning.errors import ErasureError

EDIT_FILE = "edit.safetensors"

#: What `erasure score` writes beside the pictures.
SCORE_FILE = "score.json"

#: In a run's folder ``samples/``: the list of its pictures, and what it says of each pair.
SAMPLES_FILE, SAMPLES_COLUMNS = "samples.csv", ("prompt", "group", "seed", "before", "after")


def write_atomically(path: Path, content: bytes) -> None:
    """Write under a temporary name, sync, rename: a full disk or a kill never destroys what was
    there.

    Raises:
        ErasureError: If the folder cannot be written to or the disk is full.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with suppress(
            OSError
        ):  # A read-only folder refuses this too, and the first cause is the one to tell.
            temporary.unlink(missing_ok=True)
        raise _unwritten(path, error) from error


def is_temporary(path: Path) -> bool:
    """Whether `write_atomically` wrote it, or writes it still, under a name that is not the file's
    own.
    """
    return re.fullmatch(r"\..+\.\d+", path.name) is not None


def append_bytes(path: Path, content: bytes) -> None:
    """Write behind what is there; a full disk or a kill may cut what is added.

    Raises:
        ErasureError: If the file cannot be written to or the disk is full.
    """
    try:
        with path.open("ab") as file:
            file.write(content)
    except OSError as error:
        raise _unwritten(path, error) from error


def _unwritten(path: Path, error: OSError) -> ErasureError:
    return ErasureError(
        f"Could not write {path}: {error.strerror}. What was there before is untouched."
    )


def json_text(content: Any, what: str, **options: Any) -> str:
    """JSON text that every reader takes: NaN and infinity are no JSON.

    Args:
        content: What JSON holds.
        what: What it is, as the message names it.
        options: Further arguments of `json.dumps`.

    Raises:
        ErasureError: If a number in it is NaN or infinite, naming the first.
    """
    try:
        return json.dumps(content, allow_nan=False, **options)
    except ValueError as error:
        place, value = next(_not_finite(content), ("", error))
        raise ErasureError(
            f"{what} needs finite numbers; found {value} at {place}, and nothing was written. Look"
            " at what it was made from: the pictures, and the model's settings."
        ) from error


def _not_finite(content: Any, place: str = "") -> Iterator[tuple[str, float]]:
    """Where in nested content NaN and infinity stand, and which of the two."""
    if isinstance(content, float) and not math.isfinite(content):
        yield place.removeprefix("."), content
    inside: Iterable[tuple[Any, Any]] = ()
    if isinstance(content, dict):
        inside = content.items()
    elif isinstance(content, list | tuple):
        inside = enumerate(content)
    for key, value in inside:
        yield from _not_finite(value, f"{place}.{key}")


def write_json(path: Path, content: Any) -> None:
    """Write content as indented JSON, atomically.

    Raises:
        ErasureError: If a number in it is NaN or infinite, or the file cannot be written.
    """
    write_atomically(
        path, (json_text(content, str(path), indent=2, ensure_ascii=False) + "\n").encode()
    )
