"""What packages offer by name: lines of our own tables, and entry points of other packages."""

from collections.abc import Mapping
from importlib.metadata import EntryPoint
from pkgutil import resolve_name
from typing import Any, NamedTuple


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


def load_built_in(package: str, table: Mapping[str, BuiltIn], name: str) -> Any:
    """A class of a table, imported when it is first used: the ``__getattr__`` of its package.

    Raises:
        AttributeError: If the table has no such name.
    """
    if name not in table:
        raise AttributeError(f"module {package!r} has no attribute {name!r}")
    return resolve_name(table[name].target)


def package_of(entry: EntryPoint) -> str:
    """Distribution of an entry point with its version; its module where no metadata name one."""
    if entry.dist is None or not (entry.dist.metadata and entry.dist.metadata["Name"]):
        return entry.value.partition(":")[0]
    return f"{entry.dist.name} {entry.dist.version}"


def unmet_requirement(entry: EntryPoint, other: EntryPoint) -> str:
    """What an entry point's package requires of another's, if the installed version is outside it.

    Args:
        entry: The entry point whose package requires the other one.
        other: The entry point of the required package.

    Returns:
        The requirement, such as ``name>=2``; empty if it is met, or a package names no version.
    """
    if not entry.dist or not other.dist:
        return ""
    from packaging.requirements import Requirement  # not by light commands
    from packaging.utils import canonicalize_name

    package = canonicalize_name(other.dist.name)
    for need in map(Requirement, entry.dist.requires or ()):
        allowed = need.specifier.contains(other.dist.version, prereleases=True)
        if canonicalize_name(need.name) == package and not allowed:
            return str(need)
    return ""


def cause_of(error: BaseException) -> str:
    """Why an entry point could not be loaded, in one line without a full stop."""
    if isinstance(error, SystemExit):
        return f"it ended the program when imported (SystemExit: {error.code})"
    return f"{type(error).__name__}: {error}".replace("\n", " ").rstrip(".")
