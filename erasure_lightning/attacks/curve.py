"""The curve of an attack whose budget grows, as a picture; matplotlib is imported where one is
drawn.
"""

import io
from typing import TYPE_CHECKING

from erasure_lightning.attacks.outcome import Outcome
from erasure_lightning.concepts.concept import shortened_names

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Told apart by every eye (Okabe and Ito 2008), and by their dashes too.
ATTACKED, ORIGINAL, PLAIN, CONTROLS = (
    "#D55E00",
    "#0072B2",
    "#009E73",
    ("#CC79A7", "#E69F00", "#56B4E9"),
)


def plot_curve(outcome: Outcome) -> bytes:
    """A PNG of success against budget with its 95 % band, and what the models do without the
    attack.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.6), dpi=150, layout="constrained")
    axes = figure.subplots()
    _references(axes, outcome)
    points = outcome.curve or []
    budgets = [point.budget for point in points]
    lows, highs = ([getattr(point, end) for point in points] for end in ("low", "high"))
    if None not in lows + highs:
        axes.fill_between(budgets, lows, highs, color=ATTACKED, alpha=0.18, linewidth=0)
    axes.plot(
        budgets,
        [point.success for point in points],
        "o-",
        color=ATTACKED,
        label="under attack",
        zorder=3,
    )
    axes.set_xticks(budgets, [f"{budget:g}" for budget in budgets])
    axes.set_xlabel(outcome.axis or "budget")
    axes.set_ylabel("share of pictures that show it")
    axes.set_ylim(-0.03, 1.03)
    by = f" erased by {outcome.method}" if outcome.method else ""
    figure.suptitle(
        f"{outcome.attack} on {shortened_names(outcome.concepts)}{by}",
        x=0.01,
        ha="left",
        fontsize=12,
        weight="bold",
    )
    seeds, pictures = outcome.success["attacked"].seeds, outcome.success["attacked"].pictures
    axes.set_title(
        f"{seeds} seeds, {pictures} pictures a point; 95 % intervals over seeds",
        fontsize=9,
        loc="left",
    )
    axes.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1.01, 0.5))
    for edge in ("top", "right"):
        axes.spines[edge].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _references(axes: "Axes", outcome: Outcome) -> None:
    """What needs no attack, as lines."""
    lines = [
        ("original", ORIGINAL, "--", "original, asked plainly"),
        ("plain", PLAIN, "-.", "edited, asked plainly"),
    ]
    for asked, colour, dashes, label in lines:
        axes.axhline(
            outcome.success[asked].mean,
            color=colour,
            linestyle=dashes,
            linewidth=1.6,
            label=label,
            zorder=1,
        )
    for (name, estimate), colour in zip(outcome.controls.items(), CONTROLS, strict=False):
        axes.axhline(
            estimate.mean,
            color=colour,
            linestyle=":",
            linewidth=1.6,
            label=f"control: {name}",
            zorder=1,
        )
    if (threshold := outcome.arguments.get("threshold")) is not None:
        axes.axhline(threshold, color="0.6", linewidth=0.8, label="counts as back", zorder=0)
