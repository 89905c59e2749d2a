"""Tensors of safetensors files, as described by their headers alone."""

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open

from erasure_lightning.errors import ErasureError


class StoredTensors(NamedTuple):
    """The tensors of a file, as described by its header.

    Args:
        entries: By name, in the file's order: ``dtype``, ``shape``, and ``data_offsets`` in bytes.
        start: Byte from which the offsets count.
    """

    entries: dict[str, dict[str, Any]]
    start: int


def require_safetensors(title: str, path: Path) -> None:
    """Raises unless a file is there and its name ends in ``.safetensors``.

    Args:
        title: The file, for the message.
        path: The file.

    Raises:
        ErasureError: With how to convert a pickle, which is never read.
    """
    if not path.is_file():
        raise ErasureError(f"No {title} at {path}: there is no such file.")
    if path.suffix != ".safetensors":
        raise ErasureError(
            f"The {title} {path} needs to be safetensors; found {path.suffix or 'no ending'}."
            " Pickles can run code and are not read: where you trust it, write"
            " save_file(torch.load(FILE), 'new.safetensors') with safetensors.torch."
        )


def stored_tensors(path: Path) -> StoredTensors:
    """A file's tensors, from its header alone.

    Raises:
        ErasureError: If the file is truncated, damaged, or a pointer of Git LFS.
    """
    try:
        with safe_open(path, framework="np"):  # checks that it is whole
            pass
        with path.open("rb") as file:
            length = struct.unpack("<Q", file.read(8))[0]
            entries: dict[str, dict[str, Any]] = json.loads(file.read(length))
    except (SafetensorError, OSError, ValueError) as error:
        if _is_pointer(path):
            raise ErasureError(
                f"{path} needs to hold weights; found a pointer of Git LFS. Run `git lfs pull`"
                " in its repository."
            ) from error
        raise ErasureError(
            f"{path} needs to be a whole safetensors file; found {error}. Download it again."
        ) from error
    entries.pop("__metadata__", None)
    return StoredTensors(entries, 8 + length)


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of a file's tensors, by name; raises as `stored_tensors`."""
    return {name: tuple(entry["shape"]) for name, entry in stored_tensors(path).entries.items()}


def meta_tensors(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    """Tensors without values, of the shapes that are stored."""
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def _is_pointer(path: Path) -> bool:
    """Whether Git LFS left a pointer in a file's place."""
    try:
        with path.open("rb") as content:
            return content.read(30).startswith(b"version https://git-lfs")
    except OSError:
        return False
