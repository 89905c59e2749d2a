"""`Estimate`: a mean with its interval; imports no torch."""

from typing import NamedTuple


class Estimate(NamedTuple):
    """A mean over seeds with its 95 % interval.

    Args:
        mean: Mean of the seeds' means; NaN without measurements.
        low: Lower end of the interval.
        high: Upper end.
        seeds: Number of measured seeds.
        images: Number of measured images.
    """

    mean: float
    low: float
    high: float
    seeds: int
    images: int

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"

    def two_lines(self) -> str:
        """The mean above its interval, so that tables fit 80 columns."""
        return str(self).replace(" [", "\n[")
