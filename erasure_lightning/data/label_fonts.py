"""Fonts of labels in images, and the spelling of letters that none of them has."""

from functools import cache
from pathlib import Path
from typing import Any

from PIL import ImageFont

#: Size at which a font's letters are tried, in pixels.
_TRIAL_SIZE = 17


@cache  # a font keeps the shapes of its letters
def _opened(file: str, size: int) -> Any:
    return ImageFont.truetype(file, size)


def label_font(text: str, size: int) -> Any:
    """A font for a text.

    Pillow's own draws ASCII. For other letters, such as *é* and *ж*, it is matplotlib's; for those
    that this lacks too, such as Chinese ones and most emojis, the system's with most of them.

    Args:
        text: The text.
        size: Size in pixels.
    """
    return _default(size) if text.isascii() else _opened(_best_file(frozenset(text)), size)


def plot_font(text: str) -> Path | None:
    """The font of the system that draws a text in plots; None for matplotlib's own."""
    file = "" if text.isascii() else _best_file(frozenset(text))
    return None if file in ("", _own_file()) else Path(file)


def spelled_out(text: str) -> str:
    """A text with letters that its font lacks by their numbers, such as ``U+1F480``."""
    text = text.encode(errors="replace").decode()
    if text.isascii():
        return text
    drawn = _drawn(_best_file(frozenset(text)), frozenset(text))
    return "".join(letter if letter in drawn else f" U+{ord(letter):04X} " for letter in text)


@cache
def _default(size: int) -> Any:
    return ImageFont.load_default(size)


@cache
def _best_file(letters: frozenset[str]) -> str:
    """The font with most of the letters: matplotlib's, unless one of the system's has more."""
    own = _own_file()
    if _drawn(own, letters) == letters:
        return own
    from matplotlib.font_manager import findSystemFonts

    # Last resort fonts draw every letter as a box.
    files = [file for file in sorted(findSystemFonts()) if "lastresort" not in file.lower()]
    return max((own, *files), key=lambda file: len(_drawn(file, letters)))


def _own_file() -> str:
    import matplotlib

    return str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"))


@cache
def _drawn(file: str, letters: frozenset[str]) -> frozenset[str]:
    """The letters that a font draws, or that have no width; none of a font of coloured bitmaps."""
    from matplotlib.ft2font import FT2Font

    try:
        known = FT2Font(file).get_charmap()
        font = _opened(file, _TRIAL_SIZE)
    except (OSError, RuntimeError):
        return frozenset()
    return frozenset(
        letter
        for letter in letters
        if letter.isspace()
        or (ord(letter) in known and (font.getmask(letter).getbbox() or not font.getlength(letter)))
    )
