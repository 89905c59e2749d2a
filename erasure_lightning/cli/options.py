"""The options of a command line, in order, read once before any parser sees them."""

from collections.abc import Iterable
from typing import NamedTuple

#: Names of the option that reads a config.
CONFIG_OPTIONS = ("-c", "--config")

#: Options of one dash; any other word with one may be a negative number.
_SHORT = ("-c", "-h")


class Option(NamedTuple):
    """An option with its value, or a word that belongs to no option.

    Args:
        name: With its dashes (``--model.lr``); empty for a word without an option.
        value: Its value; None for a flag.
        joined: Whether both are one word, with ``=`` between them.
    """

    name: str
    value: str | None = None
    joined: bool = False

    def words(self) -> list[str]:
        """The option as words of a command line."""
        if self.joined:
            return [f"{self.name}={self.value}"]
        return [word for word in (self.name or None, self.value) if word is not None]


class Options(tuple[Option, ...]):
    """All options of a command line, in order."""

    @classmethod
    def read(cls, argv: Iterable[str]) -> "Options":
        """Read the words of a command line.

        Args:
            argv: Words behind the command; one behind an option without ``=`` is its value, unless
                it is an option itself.
        """
        options: list[Option] = []
        for word in argv:
            if options and _takes(options[-1], word):
                options[-1] = Option(options[-1].name, word)
            elif word.startswith("-"):
                name, joined, value = word.partition("=")
                options.append(Option(name, value if joined else None, bool(joined)))
            else:
                options.append(Option("", word))
        return cls(options)

    def get(self, name: str) -> str | None:
        """The last value of an option; None for one that has none, or is not there."""
        return next((option.value for option in reversed(self) if option.name == name), None)

    def names(self) -> set[str]:
        """Names of all options."""
        return {option.name for option in self}


def with_underscores(argv: Iterable[str]) -> list[str]:
    """The words of a command line; dashes inside the names of options become underscores.

    ``--gpu-memory=24`` is ``--gpu_memory=24``; values, and all words behind ``--``, stay.

    Args:
        argv: Words behind the command.
    """
    words = list(argv)
    end = words.index("--") if "--" in words else len(words)
    return [*map(_with_underscores, words[:end]), *words[end:]]


def _with_underscores(word: str) -> str:
    name, joined, value = word.partition("=")
    if not name.startswith("--") or " " in name:
        return word
    return f"--{name[2:].replace('-', '_')}{joined}{value}"


def _takes(option: Option, word: str) -> bool:
    is_open = bool(option.name) and option.value is None
    return is_open and not word.startswith("--") and word not in _SHORT
