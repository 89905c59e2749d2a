"""The plot of a `Calibration`; matplotlib is imported where it is drawn."""

import io
from typing import TYPE_CHECKING

import torch

from erasure_lightning.data.label_fonts import plot_font, spelled_out
from erasure_lightning.training.calibration import Calibration, SentenceGroup

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Of the groups; colour-blind readers can tell them apart too (Okabe and Ito 2008).
_COLOURS = {"rephrasings": "#009E73", "associated": "#D55E00", "unrelated": "#0072B2"}

#: How many words of a group are named below it, the nearest.
_NAMED_WORDS = 6


def plot_calibration(calibration: Calibration, concept: str, backbone: str, states: str) -> bytes:
    """A PNG of the groups' cosines, with the bounds of the neighbourhood and their distances.

    Args:
        calibration: The groups and the bounds.
        concept: Words of the concept.
        backbone: Name of the model whose text encoder it is about.
        states: ``tokens`` or ``eot``, as `calibrate` has them.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.6), dpi=150, layout="constrained")
    axes = figure.subplots()
    for row, (name, group) in enumerate(reversed(calibration.groups.items())):
        _row(axes, row, name, group)
    _bounds(axes, calibration)
    axes.set_yticks(
        range(3),
        [f"{n}\n(words: {len(set(g.words))})" for n, g in reversed(calibration.groups.items())],
    )
    what = "aligned tokens, concept's words onward" if states == "tokens" else "end-of-text state"
    axes.set_xlabel(f"cosine to the nearest of the concept's sentences ({what})")
    title = spelled_out(f"Neighbourhood of “{concept}” in {backbone}")
    font = plot_font(title)
    figure.suptitle(title, x=0.01, ha="left", fontproperties=font, fontsize=12, weight="bold")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _row(axes: "Axes", row: int, name: str, group: SentenceGroup) -> None:
    """A group's sentences as a cloud, and below it quartiles, median and the nearest words."""
    colour = _COLOURS[name]
    values = group.cosines
    jitter = torch.rand(len(values), generator=torch.Generator().manual_seed(row)) * 0.34
    axes.scatter(
        values.tolist(),
        (row + jitter).tolist(),
        s=6,
        color=colour,
        alpha=0.4,
        linewidths=0,
        zorder=2,
    )
    low, middle, high = values.quantile(torch.tensor([0.25, 0.5, 0.75])).tolist()
    axes.plot(
        [low, high], [row - 0.09] * 2, color=colour, linewidth=4, solid_capstyle="butt", zorder=3
    )
    axes.plot(
        middle, row - 0.09, "o", color="white", markeredgecolor=colour, markeredgewidth=2, zorder=4
    )
    caption = f"median {middle:.2f}; by word: {_nearest_words(group)}"
    place = axes.get_yaxis_transform()
    axes.text(0.01, row - 0.36, caption, transform=place, fontsize=8, color="0.2", zorder=5)


def _nearest_words(group: SentenceGroup) -> str:
    words = [f"{word} {cosine:.2f}" for word, cosine in group.by_word().items()]
    return ", ".join([*words[:_NAMED_WORDS], *(["..."] if len(words) > _NAMED_WORDS else [])])


def _bounds(axes: "Axes", calibration: Calibration) -> None:
    """The neighbourhood as a band between its two bounds, and distances along the top."""
    axes.axvspan(calibration.min_cosine, calibration.max_cosine, color="0.9", zorder=0)
    for value, sign, side in (
        (calibration.min_cosine, "S_1", "right"),
        (calibration.max_cosine, "S_2", "left"),
    ):
        axes.axvline(value, color="black", linestyle="--", linewidth=1, zorder=1)
        shift = (-4, 0) if side == "right" else (4, 0)
        axes.annotate(
            f"${sign}$ = {value:.2f}",
            (value, 2.5),
            shift,
            textcoords="offset points",
            ha=side,
            va="center",
            fontsize=9,
        )
    left = min(group.cosines.min().item() for group in calibration.groups.values())
    axes.set_xlim(min(left, calibration.min_cosine) - 0.03, 1.02)
    axes.set_ylim(-0.5, 2.65)
    _distance_axis(axes, calibration)
    for edge in ("top", "right"):
        axes.spines[edge].set_visible(False)


def _distance_axis(axes: "Axes", calibration: Calibration) -> None:
    """Distances of the cosines, along the top."""
    top = axes.secondary_xaxis("top")
    inside = [value for value in (0.0, 0.2, 0.4, 0.6, 0.8, 0.9, 1.0) if value >= axes.get_xlim()[0]]
    top.set_xticks(
        inside, [f"{calibration.length * (2 - 2 * value) ** 0.5:.1f}" for value in inside]
    )
    top.set_xlabel(
        f"distance between states of length {calibration.length:.1f}, units of the text encoder's"
        f" output ($D_1$ = {calibration.max_distance:.2f} at $S_1$)",
        fontsize=9,
    )
