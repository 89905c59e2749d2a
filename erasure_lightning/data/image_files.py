"""Image files of a user: listing, reading, and resizing to a model's size."""

import struct
from collections.abc import Sequence
from pathlib import Path

import numpy
import torch
from PIL import Image, ImageOps
from torch import Tensor

from erasure_lightning.errors import ErasureError

#: Errors of Pillow for damaged files; the last two are of damaged EXIF.
_DAMAGED = (OSError, SyntaxError, ValueError, Image.DecompressionBombError, TypeError, struct.error)

#: Suffixes of readable images.
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")


def image_files(paths: Sequence[str], owner: str = "purify") -> list[Path]:
    """Image files among paths and in folders among them, in order.

    Args:
        paths: Files and folders.
        owner: What needs them, for errors.

    Raises:
        ErasureError: If one does not exist, is no PNG or JPEG, or cannot be read.
    """
    files: list[Path] = []
    for path in map(Path, paths):
        files += _files_in(path, owner) if path.is_dir() else [path]
    for path in files:
        if not path.is_file():
            raise ErasureError(f"No image at {path}: there is no such file or folder.")
        if path.suffix.lower() not in IMAGE_SUFFIXES:
            raise ErasureError(f"{owner} reads PNG and JPEG files; found {path}.")
        read_image(path)  # all of them now, rather than a failure after an hour
    return files


def _files_in(folder: Path, owner: str) -> list[Path]:
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise ErasureError(f"{owner} reads PNG and JPEG files; found none in the folder {folder}.")
    return files


def read_image(path: Path) -> Image.Image:
    """An image, upright and on white where it is transparent.

    Raises:
        ErasureError: If it cannot be read.
    """
    try:
        upright = _in_8_bits(ImageOps.exif_transpose(Image.open(path))).convert("RGBA")
    except _DAMAGED as error:
        raise ErasureError(
            f"{path} cannot be read as an image; it may be cut short or damaged. ({error})"
        ) from error
    return Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright).convert("RGB")


def _in_8_bits(image: Image.Image) -> Image.Image:
    """An image without values beyond 8 bits, which Pillow would cut to white where it converts."""
    if image.mode not in ("I", "I;16"):  # of 16-bit greys
        return image
    return Image.fromarray((numpy.asarray(image) / 257).round().astype("uint8"))


def read_resized(path: Path, height: int, width: int) -> Tensor:
    """The centre of an image, resized to ``(3, height, width)`` in 0..1."""
    return image_tensor(ImageOps.fit(read_image(path), (width, height), Image.Resampling.LANCZOS))


def image_tensor(image: Image.Image) -> Tensor:
    """An RGB image as ``(3, H, W)`` in 0..1."""
    return torch.tensor(numpy.asarray(image)).permute(2, 0, 1).float() / 255
