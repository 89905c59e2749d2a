"""Pictures as files, and as a contact sheet: labelled rows under headings. Knows nothing of models."""

import io
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

_PAPER, _INK, _FAINT, _BAND, _EMPTY = "#f3f5f8", "#1b1f24", "#5b6570", "#dfe5ee", "#e6e9ee"
_MARGIN, _GAP, _GROUP_GAP, _LABEL = 24, 4, 20, 230
_TITLE_SIZE, _HEADING_SIZE, _TEXT_SIZE = 26, 19, 17


def to_pil(picture: Tensor) -> Image.Image:
    """A picture ``(3, H, W)`` in 0..1, rounded to 8 bits."""
    pixels = (picture.detach().float().clamp(0, 1) * 255).round().byte()
    return Image.fromarray(pixels.permute(1, 2, 0).cpu().numpy())


def png_bytes(picture: Image.Image) -> bytes:
    """A picture as the content of a file."""
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


class GridRow(NamedTuple):
    """A row of the sheet.

    Args:
        heading: Rows of one heading stand together under it.
        text: What stands in front of the pictures.
        pictures: One a column, ``None`` for an empty place.
    """

    heading: str
    text: str
    pictures: Sequence[Image.Image | None]


def draw_grid(
    title: str, subtitle: str, columns: Sequence[str], lines: Sequence[GridRow]
) -> Image.Image:
    """Draw the sheet.

    Args:
        title: Large on top.
        subtitle: Small under it.
        columns: Heads of the columns, which belong together in twos.
        lines: Its rows.
    """
    side = _side(lines)
    xs = [_MARGIN + _LABEL + i * (side + _GAP) + i // 2 * _GROUP_GAP for i in range(len(columns))]
    width = max(xs[-1] + side + _MARGIN, 640)
    top = _MARGIN + _TITLE_SIZE + _TEXT_SIZE + 24
    headings = 1 + sum(a.heading != b.heading for a, b in pairwise(lines))
    height = (
        top
        + _TEXT_SIZE
        + 14
        + headings * (_HEADING_SIZE + 30)
        + len(lines) * (side + _GAP)
        + _MARGIN
    )
    sheet = Image.new("RGB", (width, height), _PAPER)
    pen = ImageDraw.Draw(sheet)
    _write_line(pen, (_MARGIN, _MARGIN), title, _TITLE_SIZE, _INK, width - 2 * _MARGIN)
    _write_line(
        pen,
        (_MARGIN, _MARGIN + _TITLE_SIZE + 10),
        subtitle,
        _TEXT_SIZE,
        _FAINT,
        width - 2 * _MARGIN,
    )
    for x, text in zip(xs, columns, strict=True):
        _write_line(pen, (x, top), text, _TEXT_SIZE - 2, _FAINT, side)
    _rows(sheet, pen, top + _TEXT_SIZE + 8, xs, side, lines)
    return sheet


def _side(lines: Sequence[GridRow]) -> int:
    """Side of a cell: small pictures twice as large, large ones no larger than needed."""
    largest = max(picture.width for line in lines for picture in line.pictures if picture)
    return min(max(128, largest), 192)


def _rows(
    sheet: Image.Image,
    pen: ImageDraw.ImageDraw,
    y: int,
    xs: Sequence[int],
    side: int,
    lines: Sequence[GridRow],
) -> None:
    heading = None
    for line in lines:
        if line.heading != heading:
            heading = line.heading
            pen.rectangle((_MARGIN, y + 8, xs[-1] + side, y + _HEADING_SIZE + 20), fill=_BAND)
            _write_line(pen, (_MARGIN + 10, y + 12), heading, _HEADING_SIZE, _INK, _LABEL * 2)
            y += _HEADING_SIZE + 30
        _label(pen, y, side, line.text)
        for x, picture in zip(xs, line.pictures, strict=True):
            if picture:
                sheet.paste(
                    picture.convert("RGB").resize((side, side), Image.Resampling.LANCZOS), (x, y)
                )
            else:
                pen.rectangle((x, y, x + side - 1, y + side - 1), fill=_EMPTY)
        y += side + _GAP


def _label(pen: ImageDraw.ImageDraw, y: int, side: int, text: str) -> None:
    """A prompt in at most four lines, at half height."""
    broken = wrap_text(text, _TEXT_SIZE, _LABEL - 20, 4)
    y += (side - len(broken) * (_TEXT_SIZE + 5)) // 2
    for line in broken:
        _write_line(pen, (_MARGIN, y), line, _TEXT_SIZE, _INK, _LABEL - 20)
        y += _TEXT_SIZE + 5


def wrap_text(text: str, size: int, width: int, most: int) -> list[str]:
    """A text in lines of at most ``width`` pixels, ``most`` of them; what does not fit ends in
    dots.
    """
    font, lines = ImageFont.load_default(size), [""]
    for word in text.encode(errors="replace").decode().split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    return [*lines[: most - 1], " ".join(lines[most - 1 :])][: len(lines)]


def _write_line(
    pen: ImageDraw.ImageDraw, at: tuple[int, int], text: str, size: int, colour: str, width: int
) -> None:
    """One line of text, cut with dots where it is wider than ``width`` pixels."""
    font = ImageFont.load_default(size)
    text = " ".join(text.encode(errors="replace").decode().split())[
        :width
    ]  # No letter is narrower than a pixel.
    if font.getlength(text) > width:
        while text and font.getlength(f"{text}...") > width:
            text = text[:-1]
        text = f"{text.rstrip()}..."
    pen.text(at, text, fill=colour, font=font)
