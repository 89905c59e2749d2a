"""What packages offer by name: lines of our own tables, and entry points of other packages."""

from importlib.metadata import EntryPoint
from typing import NamedTuple


class BuiltIn(NamedTuple):
    """A line of a table of ours, which can be read without importing the class.

    Args:
        target: Where the class is, ``module:Class``.
        summary: What it does, in one line.
        paper: Where it was published; empty for what has no paper.
    """

    target: str
    summary: str
    paper: str


def package_of(entry: EntryPoint) -> str:
    """Distribution of an entry point with its version; its module where no metadata name one."""
    if entry.dist is None or not (entry.dist.metadata and entry.dist.metadata["Name"]):
        return entry.value.partition(":")[0]
    return f"{entry.dist.name} {entry.dist.version}"


def cause_of(error: BaseException) -> str:
    """Why an entry point could not be loaded, in one line without a full stop."""
    if isinstance(error, SystemExit):
        return f"it ended the program when imported (SystemExit: {error.code})"
    return f"{type(error).__name__}: {error}".replace("\n", " ").rstrip(".")
