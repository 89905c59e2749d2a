"""The file of an edit, read for what it says: none of its values are loaded."""

import hashlib
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from erasure_lightning.edits.format import current_name, read_metadata
from erasure_lightning.errors import ErasureError


@dataclass(frozen=True)
class EditFile:
    """What is in an ``edit.safetensors``.

    Args:
        sha256: Of the file, 64 hexadecimal digits.
        size: In bytes.
        tensors, values: How many it holds.
        components: Of a pipeline, those that it changes.
        metadata: What it was made from.
    """

    sha256: str
    size: int
    tensors: int
    values: int
    components: tuple[str, ...]
    metadata: dict[str, Any]


def read_edit_file(path: Path) -> EditFile:
    """Look into an edit.

    Raises:
        ErasureError: If it is none, or cut short.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            header, names = file.metadata() or {}, sorted(file.keys())
            values = sum(prod(file.get_slice(name).get_shape()) for name in names)
        about = read_metadata(path, header)
        with path.open("rb") as content:
            sha256 = hashlib.file_digest(content, "sha256").hexdigest()
    except (SafetensorError, OSError, ValueError) as error:
        raise ErasureError(
            f"{path} needs to be an edit as `erasure fit` writes it; found none ({error})."
        ) from error
    components = tuple(dict.fromkeys(current_name(name).partition(".")[0] for name in names))
    return EditFile(sha256, path.stat().st_size, len(names), values, components, about)
