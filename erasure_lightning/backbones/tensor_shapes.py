"""Names and shapes of the tensors in a safetensors file, from its header alone."""

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from erasure_lightning.errors import ErasureError


def tensor_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of all stored tensors, by name.

    Raises:
        ErasureError: If the file is truncated, damaged, or a pointer of Git LFS.
    """
    try:
        with safe_open(file, framework="pt") as tensors:
            return {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        with file.open("rb") as content:
            if content.read(30).startswith(b"version https://git-lfs"):
                raise ErasureError(
                    f"{file} needs to hold weights; found a pointer of Git LFS. Run `git lfs pull`"
                    " in its repository."
                ) from error
        raise ErasureError(
            f"{file} needs to be a whole safetensors file; found {error}. Download it again."
        ) from error


def meta_tensors(shapes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    """Tensors without values, of the shapes that are stored."""
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
