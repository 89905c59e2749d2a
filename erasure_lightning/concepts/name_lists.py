"""Lists of names as people keep them, one a line; what could be more than a name is asked about."""

import re
from collections.abc import Iterator
from pathlib import Path

from erasure_lightning.errors import ErasureError
from erasure_lightning.files.words import cleaned, folded

#: Headings of a list with a single column; a concept of that name goes in quotes.
_HEADINGS = ("name", "names", "concept", "concepts")

#: Words that head a list rather than belong to it.
_LIKELY = (
    *(
        "artist",
        "artists",
        "style",
        "styles",
        "object",
        "objects",
        "class",
        "classes",
        "celebrity",
        "celebrities",
    ),
    *(
        "label",
        "labels",
        "prompt",
        "prompts",
        "word",
        "words",
        "target",
        "targets",
        "category",
        "id",
        "anchor",
    ),
)

_MARK = re.compile(r"(?:[-*+\u2013\u2014]\s+|[•‣◦·]\s*)")
_NUMBER = re.compile(r"\(?\d{1,4}[.)]\s+")
_QUOTED = re.compile(r"""(?:"((?:[^"]|"")*)"|'([^']*)'|“([^“”]*)”|«([^«»]*)»)\s*[,;]?\s*(?:#.*)?""")
_REMARK = re.compile(r"\s#\s.*|\s#$")

#: What a name on its own does not hold, and what it is taken for.
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
    """What a name that stands without quotes may have been meant for; empty if it is a name and
    nothing else.
    """
    return next((what for pattern, what in _STRUCTURE if pattern.search(name)), "")


def read_names(path: Path, text: str) -> Iterator[tuple[int, str]]:
    """Names with their lines: without bullets, quotes, comments, remarks behind `` # ``, and the
    heading.

    Args:
        path: The file, for errors.
        text: Its content.

    Raises:
        ErasureError: If a line looks like something else than a name, with the line and how to
            write it.
    """
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), start=1)]
    lines = [
        (number, line)
        for number, line in lines
        if cleaned(line) and not cleaned(line).startswith("#")
    ]
    numbered = len(lines) > 1 and all(_MARK.match(line) or _NUMBER.match(line) for _, line in lines)
    for place, (number, line) in enumerate(lines):
        bare = _MARK.sub("", line, count=1) if _MARK.match(line) else line
        if numbered:
            bare = _NUMBER.sub("", bare, count=1) if _NUMBER.match(bare) else bare
        if found := _QUOTED.fullmatch(bare):
            yield (
                number,
                next(word for word in found.groups() if word is not None).replace('""', '"'),
            )
        elif place or folded(bare) not in _HEADINGS:
            alone = place == 0 and len(lines) > 1 and folded(bare) in _LIKELY
            yield number, _name(bare, f"{path}, line {number}", alone, not numbered)


def _name(bare: str, where: str, heads: bool, check_number: bool) -> str:
    name = _REMARK.sub("", bare).rstrip(",;").strip()
    what = "a heading" if heads else mistaken_for(name)
    if check_number and _NUMBER.match(name):
        what = "an entry of a numbered list, which the others are not"
    if what:
        raise ErasureError(f"{where}: {bare[:60]!r} looks like {what}. {HOW_TO_LIST}")
    return name
