"""Statistics of a benchmark: bootstrap intervals, ranks, Pareto front, hypervolume."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Interval(NamedTuple):
    """A mean with its bootstrap interval.

    Args:
        mean: The mean.
        low: Lower end of the interval; NaN for a single value.
        high: Upper end of the interval; NaN for a single value.
    """

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
    """Mean of the groups' means with the percentile interval of a two-level bootstrap.

    A resample draws as many groups as there are, with replacement, and from each drawn group as
    many values as it has, with replacement (Efron 1979): concepts, and the training seeds of each.
    ``scipy.stats.bootstrap`` resamples on one level.

    Args:
        groups: At least one, each with at least one value.
        level: Confidence level of the interval, between 0 and 1.
        resamples: Number of resamples.
        seed: Seed of the resampling.
    """
    means = [float(np.mean(group)) for group in groups]
    if len(groups) == 1 and len(groups[0]) == 1:
        return Interval(means[0], np.nan, np.nan)
    generator = np.random.default_rng(seed)
    sizes = np.array([len(group) for group in groups])
    values = np.array([[*group, *[0.0] * (sizes.max() - len(group))] for group in groups])
    chosen = generator.integers(len(groups), size=(resamples, len(groups)))
    size = sizes[chosen][..., None]
    member = (generator.random((*chosen.shape, sizes.max())) * size).astype(int)
    counted = np.arange(sizes.max()) < size
    sums = (values[chosen[..., None], member] * counted).sum(axis=-1) / size[..., 0]
    low, high = np.quantile(sums.mean(axis=1), [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(np.mean(means)), float(low), float(high))


def ranks(values: Sequence[float], higher: bool) -> list[float]:
    """Ranks from 1 for the best; ties share their mean rank.

    Args:
        values: One for each method.
        higher: Whether higher is better.
    """
    from scipy.stats import rankdata  # here, because it takes 1.5 s to import

    return [float(rank) for rank in rankdata([-value if higher else value for value in values])]


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the Pareto front: of the points that no other one dominates.

    A point dominates another if it is at least as high in both coordinates and higher in one.
    """
    return [
        i
        for i, (x, y) in enumerate(points)
        if not any(a >= x and b >= y and (a > x or b > y) for a, b in points)
    ]


def hypervolume(points: Sequence[tuple[float, float]]) -> float:
    """Area that points dominate above the origin (Zitzler and Thiele 1998)."""
    area = 0.0
    height = 0.0
    for x, y in sorted(points, reverse=True):
        if x > 0 and y > height:
            area += x * (y - height)
            height = y
    return area
