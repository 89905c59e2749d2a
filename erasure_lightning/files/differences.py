"""Differences between nested plain values."""

from collections.abc import Mapping
from typing import Any


def first_difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """The first value in which two nested mappings differ, as ``a.b: 1 and 2``; else empty.

    Args:
        one: Plain values, of any depth.
        other: Those it is compared with.
    """
    leaves = _leaves(one)
    others = _leaves(other)
    for path in dict.fromkeys([*leaves, *others]):
        if leaves.get(path) != others.get(path):
            return f"{'.'.join(path)}: {leaves.get(path, 'none')} and {others.get(path, 'none')}"
    return ""


def _leaves(value: Any, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    """Values by their paths; an empty mapping or list is a value."""
    if isinstance(value, Mapping):
        children = list(value.items())
    elif isinstance(value, list):
        children = list(enumerate(value))
    else:
        children = []
    leaves: dict[tuple[str, ...], Any] = {}
    for name, child in children:
        leaves |= _leaves(child, (*path, str(name)))
    return leaves or {path: value}
