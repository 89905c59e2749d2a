"""Images as PNG files, and as a grid of labelled rows under headings."""

import io
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageOps
from torch import Tensor

from erasure_lightning.data.label_fonts import label_font, spelled_out

#: Colours.
_PAPER = "#f3f5f8"
_INK = "#1b1f24"
_FAINT = "#5b6570"
_BAND = "#dfe5ee"
_EMPTY = "#e6e9ee"

#: Distances and the width of labels, in pixels.
_MARGIN = 24
_GAP = 4
_GROUP_GAP = 20
_LABEL = 230

#: Sizes of text, in pixels.
_TITLE_SIZE = 26
_HEADING_SIZE = 19
_TEXT_SIZE = 17


def to_pil(image: Tensor) -> Image.Image:
    """An image ``(3, H, W)`` in 0..1, rounded to 8 bits."""
    pixels = (image.detach().float().clamp(0, 1) * 255).round().byte()
    return Image.fromarray(pixels.permute(1, 2, 0).cpu().numpy())


def png_bytes(image: Image.Image) -> bytes:
    """Content of a PNG file."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


class GridRow(NamedTuple):
    """A row of the grid.

    Args:
        heading: Heading above consecutive rows.
        text: Label of the row.
        images: One per column; None for an empty cell.
    """

    heading: str
    text: str
    images: Sequence[Image.Image | None]


def draw_grid(
    title: str, subtitle: str, columns: Sequence[str], rows: Sequence[GridRow]
) -> Image.Image:
    """Draws a grid of images.

    Args:
        title: Large text at the top.
        subtitle: Small text below it.
        columns: Headings of the columns, which are grouped in pairs.
        rows: The rows.
    """
    side = _side(rows)
    xs = [_MARGIN + _LABEL + i * (side + _GAP) + i // 2 * _GROUP_GAP for i in range(len(columns))]
    width = max(xs[-1] + side + _MARGIN, 640)
    top = _MARGIN + _TITLE_SIZE + _TEXT_SIZE + 24
    headings = 1 + sum(a.heading != b.heading for a, b in pairwise(rows))
    body = headings * (_HEADING_SIZE + 30) + len(rows) * (side + _GAP)
    height = top + _TEXT_SIZE + 14 + body + _MARGIN
    sheet = Image.new("RGB", (width, height), _PAPER)
    pen = ImageDraw.Draw(sheet)
    inner = width - 2 * _MARGIN
    _write_line(pen, (_MARGIN, _MARGIN), title, _TITLE_SIZE, _INK, inner)
    below = _MARGIN + _TITLE_SIZE + 10
    _write_line(pen, (_MARGIN, below), subtitle, _TEXT_SIZE, _FAINT, inner)
    for x, text in zip(xs, columns, strict=True):
        _write_line(pen, (x, top), text, _TEXT_SIZE - 2, _FAINT, side)
    _rows(sheet, pen, top + _TEXT_SIZE + 8, xs, side, rows)
    return sheet


def _side(rows: Sequence[GridRow]) -> int:
    """Side of a cell in pixels: the largest image's longer one, within 128 to 192."""
    largest = max(max(image.size) for row in rows for image in row.images if image)
    return min(max(128, largest), 192)


def _rows(
    sheet: Image.Image,
    pen: ImageDraw.ImageDraw,
    y: int,
    xs: Sequence[int],
    side: int,
    rows: Sequence[GridRow],
) -> None:
    heading = None
    for row in rows:
        if row.heading != heading:
            heading = row.heading
            pen.rectangle((_MARGIN, y + 8, xs[-1] + side, y + _HEADING_SIZE + 20), fill=_BAND)
            _write_line(pen, (_MARGIN + 10, y + 12), heading, _HEADING_SIZE, _INK, _LABEL * 2)
            y += _HEADING_SIZE + 30
        _label(pen, y, side, row.text)
        for x, image in zip(xs, row.images, strict=True):
            if image:
                sheet.paste(_cell(image, side), (x, y))
            else:
                pen.rectangle((x, y, x + side - 1, y + side - 1), fill=_EMPTY)
        y += side + _GAP


def _cell(image: Image.Image, side: int) -> Image.Image:
    """An image in the middle of a square cell, in its own proportions."""
    rgb = image.convert("RGB")
    return ImageOps.pad(rgb, (side, side), Image.Resampling.LANCZOS, color=_PAPER)


def _label(pen: ImageDraw.ImageDraw, y: int, side: int, text: str) -> None:
    """A prompt in at most four lines, vertically centred."""
    lines = wrap_text(text, _TEXT_SIZE, _LABEL - 20, 4)
    y += (side - len(lines) * (_TEXT_SIZE + 5)) // 2
    for line in lines:
        _write_line(pen, (_MARGIN, y), line, _TEXT_SIZE, _INK, _LABEL - 20)
        y += _TEXT_SIZE + 5


def wrap_text(text: str, size: int, width: int, most: int) -> list[str]:
    """A text in at most ``most`` lines of ``width`` pixels; the last one may be longer."""
    text = spelled_out(text)
    font = label_font(text, size)
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    return [*lines[: most - 1], " ".join(lines[most - 1 :])][: len(lines)]


def _write_line(
    pen: ImageDraw.ImageDraw, at: tuple[int, int], text: str, size: int, colour: str, width: int
) -> None:
    """Draws one line of text, truncated to ``width`` pixels."""
    text = " ".join(spelled_out(text).split())
    font = label_font(text, size)
    text = text[:width]  # no letter is narrower than a pixel
    if font.getlength(text) > width:
        while text and font.getlength(f"{text}...") > width:
            text = text[:-1]
        text = f"{text.rstrip()}..."
    pen.text(at, text, fill=colour, font=font)
