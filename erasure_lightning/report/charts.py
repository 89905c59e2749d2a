"""Layout of intervals and curves, which the templates draw as SVG.

matplotlib takes 0.4 s to import and draws no SVG that follows the page's colours, width and dark
mode; only `scale` would be its (``MaxNLocator``).
"""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from erasure_lightning.metrics.estimates import Estimate

#: Size of a chart, and its margins for what is written beside it, in the units of its drawing.
WIDTH = 320
HEIGHT = 150
LEFT = 44
RIGHT = 12
TOP = 10
BOTTOM = 24


#: Distances between the ticks of an axis, at most about as many.
_TICKS = 4


class Scale(NamedTuple):
    """An axis.

    Args:
        low: Value at its start.
        high: Value at its end.
        ticks: Labelled values.
    """

    low: float
    high: float
    ticks: tuple[float, ...]

    def share(self, value: float) -> float:
        """Position of a value, clamped to 0..1."""
        return min(max((value - self.low) / (self.high - self.low), 0.0), 1.0)

    def text(self, value: float) -> str:
        """Label of a tick, with enough digits to differ from its neighbours."""
        if value == 0:
            return "0"
        step = self.ticks[1] - self.ticks[0] if len(self.ticks) > 1 else self.high - self.low
        if max(abs(self.low), abs(self.high)) >= 1e5 or step < 1e-4:
            return f"{value:.1e}".replace("e+0", "e").replace("e-0", "e-")
        return f"{value:.{max(0, -math.floor(math.log10(step) + 1e-9))}f}"


def scale(low: float, high: float) -> Scale:
    """Axis from ``low`` to ``high`` whose ticks are 1, 2 or 5 times a power of ten apart."""
    if high <= low:
        low = low - (abs(low) or 1) / 2
        high = high + (abs(high) or 1) / 2
    rough = (high - low) / _TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    first = math.floor(low / step + 1e-9)
    last = math.ceil(high / step - 1e-9)
    return Scale(first * step, last * step, tuple(i * step for i in range(first, last + 1)))


SHARES = Scale(0.0, 1.0, (0.0, 0.5, 1.0))


class Whisker(NamedTuple):
    """A mean and its interval along an axis, each 0..100, in percent of the axis's length.

    Args:
        low: Lower end of the interval.
        mean: The mean.
        high: Upper end of the interval.
    """

    low: float
    mean: float
    high: float


def whisker(estimate: Estimate, axis: Scale = SHARES) -> Whisker | None:
    """Position of an estimate; ``None`` unless it is finite."""
    ends = (estimate.low, estimate.mean, estimate.high)
    return (
        Whisker(*(round(100 * axis.share(end), 2) for end in ends))
        if all(map(math.isfinite, ends))
        else None
    )


def axis_of(estimates: Iterable[Estimate]) -> Scale:
    """Axis from 0 to the highest end of the intervals, for distances."""
    highs = [e.high for e in estimates if math.isfinite(e.high)]
    return scale(0.0, max(max(highs, default=1.0), 1e-3))


class Tick(NamedTuple):
    """A mark on an axis.

    Args:
        place: Its position, in percent of the axis's length.
        text: Its label.
    """

    place: float
    text: str


class Chart(NamedTuple):
    """Layout of a curve.

    Args:
        title: Its title.
        description: A sentence for screen readers.
        line: Its points in SVG's syntax.
        end: Its last point.
        across: Ticks of the horizontal axis.
        up: Ticks of the vertical axis.
        last: Its last value, as text.
    """

    title: str
    description: str
    line: str
    end: tuple[float, float]
    across: tuple[Tick, ...]
    up: tuple[Tick, ...]
    last: str


def chart(
    title: str, xs: Sequence[float], ys: Sequence[float], unit: str, share: bool = False
) -> Chart:
    """Lay out a curve of at least one point.

    Args:
        title: Its title.
        xs: Horizontal values, ascending.
        ys: Vertical values.
        unit: Unit of ``xs``, such as ``step``.
        share: Whether ``ys`` are shares, whose axis is always 0..1.
    """
    across = scale(xs[0], xs[-1])
    up = SHARES if share else scale(min(0.0, *ys), max(0.0, *ys))
    if xs[0] < xs[-1]:  # a curve fills its chart from end to end
        across = Scale(xs[0], xs[-1], tuple(t for t in across.ticks if xs[0] <= t <= xs[-1]))
    points = [(_x(across, x), _y(up, y)) for x, y in zip(xs, ys, strict=True)]
    return Chart(
        title=title,
        description=(
            f"{title}: {ys[0]:.3g} at {unit} {xs[0]:g}, {ys[-1]:.3g} at {unit} {xs[-1]:g}, "
            f"between {min(ys):.3g} and {max(ys):.3g}."
        ),
        line=" ".join(f"{x},{y}" for x, y in points),
        end=points[-1],
        across=tuple(Tick(_x(across, t), across.text(t)) for t in across.ticks),
        up=tuple(Tick(_y(up, t), up.text(t)) for t in up.ticks),
        last=f"{ys[-1]:.3g}",
    )


def _x(axis: Scale, value: float) -> float:
    return round(LEFT + axis.share(value) * (WIDTH - LEFT - RIGHT), 1)


def _y(axis: Scale, value: float) -> float:
    return round(HEIGHT - BOTTOM - axis.share(value) * (HEIGHT - TOP - BOTTOM), 1)
