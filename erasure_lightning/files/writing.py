"""Atomic writing and reading of results, and their file names. Light imports only."""

import json
import math
import os
import re
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from erasure_lightning.errors import ErasureError

#: The edit in a run's folder.
EDIT_FILE = "edit.safetensors"

#: Result of `erasure score`, in the folder of the images.
SCORE_FILE = "score.json"

#: List of the images in a run's folder ``samples/``, and its columns.
SAMPLES_FILE = "samples.csv"
SAMPLES_COLUMNS = ("prompt", "group", "seed", "before", "after")


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a file by `replacing`.

    Raises:
        ErasureError: If the folder cannot be written to or the disk is full.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(content)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name to write under, synced and renamed: old content survives any failure.

    Raises:
        ErasureError: If the folder cannot be written to or the disk is full, or the path is no
            file's: a device must not be replaced.
    """
    if not path.name or (path.exists() and not (path.is_file() or path.is_dir())):
        raise ErasureError(f"Could not write {path}: it is no regular file. Name another.")
    temporary = temporary_path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("r+b") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise _write_error(path, error) from error
    finally:  # an interruption leaves no half-written file either
        with suppress(OSError):  # a read-only folder; the first error is the one to report
            temporary.unlink(missing_ok=True)


def temporary_path(path: Path) -> Path:
    """A new hidden file beside a path.

    Its number is random: in containers that share a folder, many processes have the same one.
    """
    return path.with_name(f".{path.name}.{secrets.randbits(64)}")


def is_temporary(path: Path) -> bool:
    """Whether a file is one of `temporary_path`."""
    return re.fullmatch(r"\..+\.\d+", path.name) is not None


def append_bytes(path: Path, content: bytes) -> None:
    """Appends to a file; a full disk or a kill may truncate the addition.

    Raises:
        ErasureError: If the file cannot be written to or the disk is full.
    """
    try:
        with path.open("ab") as file:
            file.write(content)
    except OSError as error:
        raise _write_error(path, error) from error


def _write_error(path: Path, error: OSError) -> ErasureError:
    return ErasureError(
        f"Could not write {path}: {error.strerror}. What was there before is untouched."
    )


def json_text(content: Any, what: str, **options: Any) -> str:
    """JSON text without NaN and infinity, which are no JSON.

    Args:
        content: The value.
        what: Its name in messages.
        options: Further arguments of `json.dumps`.

    Raises:
        ErasureError: If a number in it is NaN or infinite.
    """
    try:
        return json.dumps(content, allow_nan=False, **options)
    except ValueError as error:
        place, value = next(_not_finite(content), ("", error))
        raise ErasureError(
            f"{what} needs finite numbers; found {value} at {place}, and nothing was written. Look"
            " at the images and the model's settings."
        ) from error


def _not_finite(content: Any, place: str = "") -> Iterator[tuple[str, float]]:
    """Places and values of NaN and infinity in nested content."""
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
    """Writes content as indented JSON, atomically.

    Raises:
        ErasureError: If a number in it is NaN or infinite, or the file cannot be written.
    """
    text = json_text(content, str(path), indent=2, ensure_ascii=False)
    write_atomically(path, f"{text}\n".encode())
