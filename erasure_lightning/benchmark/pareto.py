"""Pareto plot of a benchmark: erasure against retention. Imports matplotlib when it draws."""

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from erasure_lightning.benchmark.statistics import Interval
from erasure_lightning.benchmark.summary import MethodSummary, Summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Colours that remain distinct under colour blindness (Okabe and Ito 2008).
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")

#: Markers, one for each round of the palette.
_MARKERS = ("o", "s", "^", "D")


def plot_pareto(summary: Summary, name: str) -> bytes:
    """Plot each method with its intervals, and the front of the complete ones; others are hollow.

    Args:
        summary: The benchmark's summary.
        name: The benchmark's name, for the title.

    Returns:
        The plot as PNG.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.8, 5.4), dpi=150)
    axes = figure.subplots()
    for i, method in enumerate(summary.methods):
        if method.erasure and method.retention:
            colour = PALETTE[i % len(PALETTE)]
            marker = _MARKERS[i // len(PALETTE) % len(_MARKERS)]
            _plot_point(axes, method, method.erasure, method.retention, colour, marker)
    _plot_front(axes, [method for method in summary.methods if method.on_front])
    axes.set_xlabel("erasure: harmonic mean of 1 - efficacy and 1 - generality →")
    axes.set_ylabel("retention: specificity →")
    area = "" if summary.hypervolume is None else f"; hypervolume {summary.hypervolume:.4f}"
    title = f"{_literal(name)}: means over concepts, 95 % bootstrap intervals{area}"
    axes.set_title(title, loc="left", fontsize=11, weight="bold")
    axes.grid(color="0.92")
    axes.set_axisbelow(True)
    for edge in ("top", "right"):
        axes.spines[edge].set_visible(False)
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False, fontsize=9)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", bbox_inches="tight")  # as large as the names need
    return buffer.getvalue()


def _plot_point(
    axes: "Axes",
    method: MethodSummary,
    erasure: Interval,
    retention: Interval,
    colour: str,
    marker: str,
) -> None:
    cells = "" if method.complete else f" ({method.finished}/{method.cells} cells)"
    axes.errorbar(
        erasure.mean,
        retention.mean,
        xerr=_error_bar(erasure),
        yerr=_error_bar(retention),
        label=f"{_literal(method.method)}{cells}",
        color=colour,
        marker=marker,
        markersize=8,
        markerfacecolor=colour if method.complete else "white",
        elinewidth=1,
        capsize=2,
        linestyle="none",
    )


def _literal(name: str) -> str:
    """A name whose dollar signs do not begin a formula."""
    return name.replace("$", r"\$")


def _error_bar(interval: Interval) -> "np.ndarray[tuple[int, int], np.dtype[np.float64]] | None":
    """Lengths of an interval below and above its mean, ``(2, 1)``; None without an interval.

    The mean may lie outside a percentile interval; that side's length is then 0.
    """
    if np.isnan(interval.low):
        return None
    return np.maximum([[interval.mean - interval.low], [interval.high - interval.mean]], 0.0)


def _plot_front(axes: "Axes", methods: Sequence[MethodSummary]) -> None:
    """Plot the border of the dominated area, from edge to edge of the plot."""
    points = sorted(
        (m.erasure.mean, m.retention.mean) for m in methods if m.erasure and m.retention
    )
    if points:
        left = axes.get_xlim()[0]
        bottom = axes.get_ylim()[0]
        xs, ys = zip((left, points[0][1]), *points, (points[-1][0], bottom), strict=True)
        axes.step(xs, ys, where="pre", color="0.4", linewidth=1, linestyle="--", zorder=0)
        axes.set_xlim(left=left)
        axes.set_ylim(bottom=bottom)
