"""What the ranks of a run found, brought together."""

from collections.abc import Sequence
from typing import TypeVar

from torch import distributed

T = TypeVar("T")


def gathered(mine: Sequence[T]) -> list[T]:
    """The items of every rank, in rank order; the same list on all of them. Every rank must call it."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return list(mine)
    parts: list[list[T]] = [[] for _ in range(distributed.get_world_size())]
    distributed.all_gather_object(parts, list(mine))
    return [item for part in parts for item in part]
