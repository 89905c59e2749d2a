"""Header, size and hash of an edit's file, read without loading its tensors."""

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
    """Summary of an ``edit.safetensors``.

    Args:
        sha256: Hash of the file, 64 hexadecimal digits.
        size: Size of the file in bytes.
        tensors: Number of tensors.
        values: Number of values in all tensors.
        components: The pipeline's components that the edit changes.
        metadata: The edit's metadata: method, concepts, base model, versions.
    """

    sha256: str
    size: int
    tensors: int
    values: int
    components: tuple[str, ...]
    metadata: dict[str, Any]


def read_edit_file(path: Path) -> EditFile:
    """Read the summary of an edit's file.

    Raises:
        ErasureError: If the file is no edit or is cut short.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            header = file.metadata() or {}
            names = sorted(file.keys())
            values = sum(prod(file.get_slice(name).get_shape()) for name in names)
        metadata = read_metadata(path, header)
        with path.open("rb") as content:
            sha256 = hashlib.file_digest(content, "sha256").hexdigest()
    except (SafetensorError, OSError, ValueError) as error:
        raise ErasureError(
            f"{path} needs to be an edit as `erasure fit` writes it; found none ({error})."
        ) from error
    components = tuple(dict.fromkeys(current_name(name).partition(".")[0] for name in names))
    return EditFile(sha256, path.stat().st_size, len(names), values, components, metadata)
