"""Names of what a run writes, and how anything is written. Imports next to nothing: the light commands need it too."""

import os
from contextlib import suppress
from pathlib import Path

from erasure_lightning.errors import ErasureError

EDIT_FILE = "edit.safetensors"

#: What `erasure score` writes beside the pictures.
SCORE_FILE = "score.json"

#: In a run's folder ``samples/``: the list of its pictures, and what it says of each pair.
SAMPLES_FILE, SAMPLES_COLUMNS = "samples.csv", ("prompt", "group", "seed", "before", "after")


def write_atomically(path: Path, content: bytes) -> None:
    """Write under a temporary name, sync, rename: a full disk or a kill never destroys what was there.

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
        with suppress(OSError):  # A read-only folder refuses this too, and the first cause is the one to tell.
            temporary.unlink(missing_ok=True)
        raise ErasureError(f"Could not write {path}: {error.strerror}. What was there before is untouched.") from error
