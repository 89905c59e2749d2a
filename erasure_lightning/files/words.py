"""Comparison of words, whatever their case, width and number."""

import difflib
import itertools
import re
import shlex
import unicodedata
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path

#: Invisible characters without meaning; joiners, which emojis and scripts need, are not among them.
_INVISIBLE = dict.fromkeys(
    (0x00AD, 0x200B, 0x200E, 0x200F, 0x2060, 0xFEFF, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
)

#: Letters of scripts that are written without spaces: Thai, Lao, Khmer, kana, Chinese characters.
_UNSPACED = "\u0e00-\u0eff\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"


def cleaned(words: str) -> str:
    """Words without invisible characters, and with one space between them."""
    return " ".join(words.translate(_INVISIBLE).split())


@lru_cache(maxsize=1 << 16)
def folded(words: str) -> str:
    """A canonical form for comparison: cleaned, of one case, width and composition of letters."""
    return cleaned(unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", words).casefold()))


def did_you_mean(word: str, known: Iterable[str], count: int = 1) -> str:
    """A sentence with the known names most like a word, in any case, after a space; or empty.

    Args:
        word: What was written.
        known: What could have been meant.
        count: Names at most.
    """
    spelled = {name.casefold(): name for name in known}
    near = [spelled[n] for n in difflib.get_close_matches(word.casefold(), spelled, n=count)]
    return f" Did you mean {' or '.join(map(repr, near))}?" if near else ""


def shell_word(path: str | Path) -> str:
    """A path as one word of a command that a message prints."""
    return shlex.quote(str(path))


def unique_names(names: Iterable[str], taken: Iterable[str] = ()) -> list[str]:
    """Names of which each is another: one that is taken is numbered, from 2.

    Args:
        names: The names, in order.
        taken: Names of something else.
    """
    unique: list[str] = []
    used = set(taken)
    for name in names:
        free = (f"{name}-{number}" if number > 1 else name for number in itertools.count(1))
        unique.append(next(other for other in free if other not in used))
        used.add(unique[-1])
    return unique


def _plurals(words: str) -> set[str]:
    """Simple English plurals of words, folded."""
    one = folded(words)
    ends = [f"{one}s", *([f"{one}es"] if one.endswith(("s", "x", "z", "ch", "sh")) else [])]
    return {*ends, *([f"{one[:-1]}ies"] if one.endswith("y") else [])}


def _forms(words: str) -> set[str]:
    """Words, folded, with their simple English plurals and whatever they are a plural of."""
    one = folded(words)
    singulars = {one[:-1], one[:-2], f"{one[:-3]}y"} - {""}
    return {one, *_plurals(one), *(s for s in singulars if one in _plurals(s))}


def mentioning(names: Iterable[str]) -> Callable[[str], bool]:
    """A predicate: whether a text has one of some names, in singular or simple plural, as words."""
    forms = sorted({form for name in names if folded(name) for form in _forms(name)})
    pattern = re.compile("|".join(map(_as_word, forms)))
    return lambda text: bool(forms) and pattern.search(folded(text)) is not None


def _as_word(form: str) -> str:
    """A pattern for words that stand alone, or anywhere where their script has no spaces."""
    letter = rf"[^\W{_UNSPACED}]"
    unspaced = re.compile(f"[{_UNSPACED}]")
    before = "" if unspaced.match(form) else f"(?<!{letter})"
    after = "" if unspaced.match(form[-1:]) else f"(?!{letter})"
    return f"{before}{re.escape(form)}{after}"


def naming(names: Iterable[str]) -> Callable[[str], bool]:
    """A predicate: whether words are one of some names, folded, in singular or simple plural."""
    once = {folded(name) for name in names}
    any_number = once.union(*map(_plurals, once))

    def is_named(words: str) -> bool:
        one = folded(words)
        return bool(one) and (one in any_number or not once.isdisjoint(_plurals(words)))

    return is_named
