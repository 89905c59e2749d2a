"""Statistics of a benchmark as pure functions: bootstrap intervals, ranks, Pareto front,
hypervolume.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Interval(NamedTuple):
    """A mean with its bootstrap interval; NaN on both sides where there is nothing to resample."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return (
            f"{self.mean:.3f}"
            if np.isnan(self.low)
            else f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"
        )


def bootstrap(
    groups: Sequence[Sequence[float]], level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> Interval:
    """The mean of groups' means, and its percentile interval by a bootstrap on two levels (Efron
    1979).

    Each resample draws as many groups as there are, with replacement, and within each group drawn
    as many values as it has, with replacement: concepts, and the training seeds of each.

    Args:
        groups: At least one, each with at least one value.
        level: Of the interval, between 0 and 1.
        resamples: How many.
        seed: Of the resampling.
    """
    means = [float(np.mean(group)) for group in groups]
    if len(groups) == 1 and len(groups[0]) == 1:
        return Interval(means[0], np.nan, np.nan)
    generator = np.random.default_rng(seed)
    sizes = np.array([len(group) for group in groups])
    values = np.array([[*group, *[0.0] * (sizes.max() - len(group))] for group in groups])
    drawn = generator.integers(len(groups), size=(resamples, len(groups)))
    size = sizes[drawn][..., None]
    member = (generator.random((*drawn.shape, sizes.max())) * size).astype(int)
    counted = np.arange(sizes.max()) < size
    sums = (values[drawn[..., None], member] * counted).sum(axis=-1) / size[..., 0]
    low, high = np.quantile(sums.mean(axis=1), [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(np.mean(means)), float(low), float(high))


def ranks(values: Sequence[float], higher: bool) -> list[float]:
    """Ranks from 1 for the best; equal values share the mean of their places.

    Args:
        values: One for each competitor.
        higher: Whether higher is better.
    """
    keyed = [-value if higher else value for value in values]
    return [sum(k < key for k in keyed) + (sum(k == key for k in keyed) + 1) / 2 for key in keyed]


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Which points no other one dominates: is at least as high in both coordinates, and higher in
    one.
    """
    return [
        i
        for i, (x, y) in enumerate(points)
        if not any(a >= x and b >= y and (a > x or b > y) for a, b in points)
    ]


def hypervolume(
    points: Sequence[tuple[float, float]], reference: tuple[float, float] = (0.0, 0.0)
) -> float:
    """The area that points dominate, down to a reference (Zitzler and Thiele 1998); 0 without any
    above it.
    """
    area, height = 0.0, reference[1]
    for x, y in sorted(points, reverse=True):
        if x > reference[0] and y > height:
            area += (x - reference[0]) * (y - height)
            height = y
    return area
