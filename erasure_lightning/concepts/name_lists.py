"""Lists of names, one per line; a line that may be more than a name is an error."""

import re
from collections.abc import Iterator
from pathlib import Path

from erasure_lightning.errors import ErasureError
from erasure_lightning.files.words import cleaned, folded

#: Headings of a list with a single column; a concept of that name needs quotes.
_HEADINGS = ("name", "names", "concept", "concepts")

#: Words that are more likely a heading than a concept.
_LIKELY_HEADINGS = (
    "artist", "artists", "style", "styles", "object", "objects", "class", "classes", "celebrity",
    "celebrities", "label", "labels", "prompt", "prompts", "word", "words", "target", "targets",
    "category", "id", "anchor",
)  # fmt: skip

_BULLET = re.compile(r"(?:[-*+\u2013\u2014]\s+|[•‣◦·]\s*)")
_NUMBER = re.compile(r"\(?\d{1,4}[.)]\s+")
_QUOTED = re.compile(r"""(?:"((?:[^"]|"")*)"|'([^']*)'|“([^“”]*)”|«([^«»]*)»)\s*[,;]?\s*(?:#.*)?""")
_COMMENT = re.compile(r"\s#\s.*|\s#$")

#: Patterns that a plain name does not match, and what a line that does is likely to be.
_STRUCTURE = (
    (re.compile(r"[,;|\t\u3001\uff0c\uff1b]"), "several names, or a name with remarks"),
    (re.compile(r"->|=>|→|\s=\s"), "a name with its anchor"),
    (re.compile(r"\s#"), "a name with a remark"),
    (re.compile(r"^[\[\]{}>\u2013\u2014-]|^//|^<!|</|://"), "code or a list"),
    (re.compile(r"(?i)^(name|concept|anchor|domain|kind)s?\s*[:=]"), "a field of a concept"),
    (re.compile(r'^[^"]*"(?:[^"]*"[^"]*")*[^"]*$'), "a quotation without an end"),
    (re.compile(r":$"), "a heading"),
    (re.compile(r"^[!-/:-@\[-`{-~\s]+$"), "a rule between names"),
)

HOW_TO_LIST = (
    "Write one name a line, and a name with such signs in double quotes; anchors, domains and "
    "kinds need a CSV with the heading name,anchor,domain,kind."
)


def mistaken_for(name: str) -> str:
    """What an unquoted line seems to be if not a name (``several names``); empty for a name."""
    return next((kind for pattern, kind in _STRUCTURE if pattern.search(name)), "")


def read_names(path: Path, text: str) -> Iterator[tuple[int, str]]:
    """Names with their line numbers, without bullets, quotes, comments and heading.

    Args:
        path: The file, for errors.
        text: Its content.

    Raises:
        ErasureError: If a line may be more than a name.
    """
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), start=1)]
    lines = [(n, line) for n, line in lines if cleaned(line) and not cleaned(line).startswith("#")]
    numbered = len(lines) > 1 and all(
        _BULLET.match(line) or _NUMBER.match(line) for _, line in lines
    )
    for position, (number, line) in enumerate(lines):
        bare = _BULLET.sub("", line, count=1) if _BULLET.match(line) else line
        if numbered:
            bare = _NUMBER.sub("", bare, count=1) if _NUMBER.match(bare) else bare
        if match := _QUOTED.fullmatch(bare):
            quoted = next(word for word in match.groups() if word is not None)
            yield number, quoted.replace('""', '"')
        elif position or folded(bare) not in _HEADINGS:
            heads = position == 0 and len(lines) > 1 and folded(bare) in _LIKELY_HEADINGS
            yield number, _name(bare, f"{path}, line {number}", heads, not numbered)


def _name(bare: str, where: str, heads: bool, check_number: bool) -> str:
    name = _COMMENT.sub("", bare).rstrip(",;").strip()
    kind = "a heading" if heads else mistaken_for(name)
    if check_number and _NUMBER.match(name):
        kind = "an entry of a numbered list, which the others are not"
    if kind:
        raise ErasureError(f"{where}: {bare[:60]!r} looks like {kind}. {HOW_TO_LIST}")
    return name
