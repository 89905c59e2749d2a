"""Images of a run, scaled down so that a page can embed them."""

import base64
import csv
import io
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from erasure_lightning.files.writing import SAMPLES_COLUMNS, SAMPLES_FILE

#: Size in bytes of all images of a page together, at most.
_MAX_TOTAL_BYTES = 4_000_000

#: Longest sides in pixels, tried in turn if the images in full size are too large.
_MAX_SIDES = (768, 512, 384, 256, 192, 128, 96, 64)

#: Quality of WebP, high enough that its artefacts are not taken for the model's.
_WEBP_QUALITY = 85


class ImagePair(NamedTuple):
    """Images of the original and the edited model from the same noise.

    Args:
        prompt: The prompt.
        group: The prompt's group, such as ``efficacy``.
        seed: Seed of the noise.
        before: File of the original model's image.
        after: File of the edited model's image.
    """

    prompt: str
    group: str
    seed: int
    before: Path
    after: Path


class EmbeddedImage(NamedTuple):
    """An image that is part of a page.

    Args:
        uri: Its content as a data URI.
        width: Its width in pixels.
        height: Its height in pixels.
    """

    uri: str
    width: int
    height: int


def read_image_pairs(folder: Path, notes: list[str]) -> tuple[ImagePair, ...]:
    """Read the pairs listed in ``samples.csv``, without those whose images cannot be read.

    Args:
        folder: The run's ``samples/``; need not exist.
        notes: Receives a sentence if the list or images cannot be read.
    """
    path = folder / SAMPLES_FILE
    if not path.is_file():
        return ()
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        pairs = [_image_pair(folder, row) for row in rows]
    except (OSError, UnicodeDecodeError, csv.Error, KeyError, ValueError, TypeError) as error:
        notes.append(
            f"samples/{SAMPLES_FILE} cannot be read ({error}): single images are left out."
        )
        return ()
    readable = [p for p in pairs if is_readable_image(p.before) and is_readable_image(p.after)]
    if missing := len(pairs) - len(readable):
        notes.append(f"{missing} of {len(pairs)} pairs of images are missing or broken.")
    return tuple(readable)


def _image_pair(folder: Path, row: dict[str, str]) -> ImagePair:
    prompt, group, seed, before, after = (row[name] for name in SAMPLES_COLUMNS)
    # Names, not paths: a list from elsewhere must not lead to files outside its folder.
    files = (folder / Path(name).name for name in (before, after))
    return ImagePair(prompt, group, int(seed), *files)


def is_readable_image(path: Path) -> bool:
    """Whether a file is an image that can be decoded to its end."""
    try:
        with Image.open(path) as image:
            image.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return False
    return True


def embed_images(paths: Iterable[Path]) -> tuple[dict[Path, EmbeddedImage], str]:
    """Embed all images of a page, in full size if they are small enough, else all scaled down.

    Returns:
        The images by path, and a sentence on how they were scaled, empty if they were not.
    """
    paths = list(dict.fromkeys(paths))
    for side in (None, *_MAX_SIDES):
        images = _embed_all(paths, side)
        if images is not None:
            sentence = (
                f"Images are shown with at most {side} pixels a side, as WebP; the run's folder"
                " holds them in full size."
            )
            return images, sentence if side else ""
    raise AssertionError("images of the smallest size are always embedded")


def _embed_all(paths: Iterable[Path], side: int | None) -> dict[Path, EmbeddedImage] | None:
    """The images by path; None if they are too large and could be smaller."""
    images: dict[Path, EmbeddedImage] = {}
    total = 0
    for path in paths:
        images[path] = _embed(path, side)
        total += len(images[path].uri)
        if total > _MAX_TOTAL_BYTES and side != _MAX_SIDES[-1]:
            return None
    return images


def _embed(path: Path, side: int | None) -> EmbeddedImage:
    """Decode and encode an image, which leaves the file's metadata out."""
    with Image.open(path) as file:
        image = file.convert("RGB")
    content = io.BytesIO()
    if side is None:
        image.save(content, "PNG", optimize=True)
    else:
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
        image.save(content, "WEBP", quality=_WEBP_QUALITY, method=4)
    kind = "png" if side is None else "webp"
    data = base64.b64encode(content.getvalue()).decode()
    return EmbeddedImage(f"data:image/{kind};base64,{data}", *image.size)
