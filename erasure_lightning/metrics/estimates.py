"""`Estimate`: a mean with its interval; readable without torch."""

from typing import NamedTuple


class Estimate(NamedTuple):
    """A mean over seeds with its 95 % interval.

    Args:
        mean: Mean of the seeds' means; NaN where nothing was measured.
        low: Lower end of the interval.
        high: Upper end.
        seeds: Seeds that were measured.
        pictures: Pictures that were measured.
    """

    mean: float
    low: float
    high: float
    seeds: int
    pictures: int

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"
