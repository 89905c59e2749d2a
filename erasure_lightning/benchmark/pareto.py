"""The Pareto plot of a benchmark: what is forgotten against what is kept. matplotlib is imported
where it is drawn.
"""

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from erasure_lightning.benchmark.statistics import Interval
from erasure_lightning.benchmark.summary import Standing, Summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Told apart by every eye (Okabe and Ito 2008), and once they are used up by the marker.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D")


def plot_pareto(summary: Summary, name: str) -> bytes:
    """A PNG: each method with its intervals, the front of the complete ones, the others hollow.

    Args:
        summary: Of the benchmark.
        name: What it is called.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.4, 4.8), dpi=150, layout="constrained")
    axes = figure.subplots()
    for i, standing in enumerate(summary.standings):
        if standing.erasure and standing.retention:
            marker = MARKERS[i // len(COLOURS) % len(MARKERS)]
            _point(
                axes,
                standing,
                standing.erasure,
                standing.retention,
                COLOURS[i % len(COLOURS)],
                marker,
            )
    _front(axes, [s for s in summary.standings if s.on_front])
    axes.set_xlabel("erasure: harmonic mean of 1 - efficacy and 1 - generality →")
    axes.set_ylabel("retention: specificity →")
    area = "" if summary.hypervolume is None else f"; hypervolume {summary.hypervolume:.4f}"
    title = f"{name}: means over concepts, 95 % bootstrap intervals{area}"
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, weight="bold")
    axes.grid(color="0.92")
    axes.set_axisbelow(True)
    for edge in ("top", "right"):
        axes.spines[edge].set_visible(False)
    figure.legend(loc="outside right center", frameon=False, fontsize=9)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _point(
    axes: "Axes",
    standing: Standing,
    erasure: Interval,
    retention: Interval,
    colour: str,
    marker: str,
) -> None:
    label = (
        standing.method
        if standing.complete
        else f"{standing.method} ({standing.finished}/{standing.cells} cells)"
    )
    axes.errorbar(
        erasure.mean, retention.mean, xerr=_reach(erasure), yerr=_reach(retention), label=label, color=colour,
        marker=marker, markersize=8, markerfacecolor=colour if standing.complete else "white", elinewidth=1, capsize=2,
        linestyle="none",
    )  # fmt: skip


def _reach(interval: Interval) -> "np.ndarray[tuple[int, int], np.dtype[np.float64]] | None":
    """How far an interval reaches to both sides, ``(2, 1)``; a percentile interval may lie beside
    its mean.
    """
    if np.isnan(interval.low):
        return None
    return np.maximum([[interval.mean - interval.low], [interval.high - interval.mean]], 0.0)


def _front(axes: "Axes", best: Sequence[Standing]) -> None:
    """The staircase under which everything is dominated, to the edges of the plot."""
    points = sorted((s.erasure.mean, s.retention.mean) for s in best if s.erasure and s.retention)
    if points:
        left, bottom = axes.get_xlim()[0], axes.get_ylim()[0]
        xs, ys = zip((left, points[0][1]), *points, (points[-1][0], bottom), strict=True)
        axes.step(xs, ys, where="pre", color="0.4", linewidth=1, linestyle="--", zorder=0)
        axes.set_xlim(left=left)
        axes.set_ylim(bottom=bottom)
