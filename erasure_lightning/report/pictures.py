"""The pictures of a run, made small enough to stand in a page."""

import base64
import csv
import io
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from erasure_lightning.files.writing import SAMPLES_COLUMNS, SAMPLES_FILE

#: What all pictures of a page may take, in bytes.
BUDGET = 4_000_000

#: Longest sides that are tried in turn once the pictures as they are would take more.
SIDES = (768, 512, 384, 256, 192, 128, 96, 64)

#: Of WebP: no artefacts that could be taken for the model's.
QUALITY = 85


class Sample(NamedTuple):
    """Two pictures from equal noise.

    Args:
        prompt: What was asked for.
        group: Why it was drawn.
        seed: Of the noise.
        before, after: Files of the original's and the edited model's picture.
    """

    prompt: str
    group: str
    seed: int
    before: Path
    after: Path


class Embedded(NamedTuple):
    """A picture as an address that holds it, with its width and height in pixels."""

    uri: str
    width: int
    height: int


def read_samples(folder: Path, notes: list[str]) -> tuple[Sample, ...]:
    """The pairs that ``samples.csv`` lists, as far as their pictures are there and whole.

    Args:
        folder: The run's ``samples/``; need not exist.
        notes: Where it is told what is amiss.
    """
    path = folder / SAMPLES_FILE
    if not path.is_file():
        return ()
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        listed = [Sample(*(row[name] for name in SAMPLES_COLUMNS)) for row in rows]  # type: ignore[arg-type]
        # A name, not a path: a list made by somebody else reaches nothing outside its folder.
        samples = [
            s._replace(
                seed=int(s.seed),
                before=folder / Path(s.before).name,
                after=folder / Path(s.after).name,
            )
            for s in listed
        ]
    except (OSError, UnicodeDecodeError, csv.Error, KeyError, ValueError, TypeError) as error:
        notes.append(
            f"samples/{SAMPLES_FILE} cannot be read ({error}): single pictures are left out."
        )
        return ()
    whole = tuple(s for s in samples if is_whole(s.before) and is_whole(s.after))
    if len(whole) < len(samples):
        notes.append(
            f"{len(samples) - len(whole)} of {len(samples)} pairs of pictures are missing or"
            " broken."
        )
    return whole


def is_whole(path: Path) -> bool:
    """Whether a picture is there and can be decoded to its end."""
    try:
        with Image.open(path) as picture:
            picture.load()
    except (OSError, ValueError, Image.DecompressionBombError):
        return False
    return True


def embed(paths: Iterable[Path]) -> tuple[dict[Path, Embedded], str]:
    """All pictures of a page, alike: as they are if they fit into `BUDGET`, else as large as they
    do.

    Returns:
        The pictures by path, and what was done to them in words, empty for nothing.
    """
    paths = list(dict.fromkeys(paths))
    for side in (None, *SIDES):
        made = _embedded(paths, side)
        if made is not None:
            told = (
                f"The pictures are shown with at most {side} pixels a side, as WebP; the run's"
                " folder holds them whole."
            )
            return made, told if side else ""
    raise AssertionError("even the smallest pictures are too many")


def _embedded(paths: Iterable[Path], side: int | None) -> dict[Path, Embedded] | None:
    made, total = {}, 0
    for path in paths:
        made[path] = _one(path, side)
        total += len(made[path].uri)
        if total > BUDGET and side != SIDES[-1]:
            return None
    return made


def _one(path: Path, side: int | None) -> Embedded:
    """Decoded and written anew, so that nothing but pixels comes along."""
    with Image.open(path) as file:
        picture = file.convert("RGB")
    content = io.BytesIO()
    if side is None:
        picture.save(content, "PNG", optimize=True)
    else:
        picture.thumbnail((side, side), Image.Resampling.LANCZOS)
        picture.save(content, "WEBP", quality=QUALITY, method=4)
    kind = "png" if side is None else "webp"
    return Embedded(
        f"data:image/{kind};base64,{base64.b64encode(content.getvalue()).decode()}", *picture.size
    )
