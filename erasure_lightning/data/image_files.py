"""Picture files that a user names: found, read, and cut to a model's size."""

from collections.abc import Sequence
from pathlib import Path

import numpy
import torch
from PIL import Image, ImageOps
from torch import Tensor

from erasure_lightning.errors import ErasureError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")


def image_files(given: Sequence[str], owner: str = "purify") -> list[Path]:
    """The files, and those in the folders, in the order given.

    Raises:
        ErasureError: Naming ``owner``, if one is not there, is no PNG or JPEG, or cannot be read.
    """
    files = [
        file
        for path in map(Path, given)
        for file in (_inside(path, owner) if path.is_dir() else [path])
    ]
    for path in files:
        if not path.is_file():
            raise ErasureError(f"No picture at {path}: there is no such file or folder.")
        if path.suffix.lower() not in IMAGE_SUFFIXES:
            raise ErasureError(f"{owner} reads PNG and JPEG files; found {path}.")
        read_image(path)  # all of them at once, rather than failing on the last after an hour
    return files


def _inside(folder: Path, owner: str) -> list[Path]:
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    if not found:
        raise ErasureError(f"{owner} reads PNG and JPEG files; found none in the folder {folder}.")
    return found


def read_image(path: Path) -> Image.Image:
    """A picture as it is meant to be seen: upright, and on white where it is transparent.

    Raises:
        ErasureError: If it cannot be read.
    """
    try:
        upright = ImageOps.exif_transpose(Image.open(path)).convert("RGBA")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ErasureError(
            f"{path} cannot be read as a picture; it may be cut short. ({error})"
        ) from error
    return Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright).convert("RGB")


def read_resized(path: Path, height: int, width: int) -> Tensor:
    """The centre of a picture, resized to ``(3, height, width)`` in 0..1."""
    centre = ImageOps.fit(read_image(path), (width, height), Image.Resampling.LANCZOS)
    return torch.tensor(numpy.asarray(centre)).permute(2, 0, 1).float() / 255


def output_names(files: Sequence[Path], taken: set[str]) -> list[str]:
    """A name for what is made of each: its stem, numbered from 2 where that is taken already."""
    found = []
    for path in files:
        number, name = 1, path.stem
        while name in taken:
            number += 1
            name = f"{path.stem}-{number}"
        taken = taken | {name}
        found.append(name)
    return found
