"""Plot of success against budget, of attacks with a curve; imports matplotlib when called."""

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from erasure_lightning.attacks.outcome import CurvePoint, Outcome
from erasure_lightning.concepts.concept import shortened_names
from erasure_lightning.data.label_fonts import plot_font, spelled_out

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Colours of Okabe and Ito (2008), which colour-blind readers can tell apart; the dashes differ too.
_ATTACKED_COLOUR = "#D55E00"
_ORIGINAL_COLOUR = "#0072B2"
_PLAIN_COLOUR = "#009E73"
_CONTROL_COLOURS = ("#CC79A7", "#E69F00", "#56B4E9")


def plot_curve(outcome: Outcome) -> bytes:
    """A PNG of success against budget with its 95 % band, and of the models without the attack."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.6), dpi=150, layout="constrained")
    axes = figure.subplots()
    _draw_references(axes, outcome)
    _draw_points(axes, outcome.curve or [])
    axes.set_xlabel(outcome.axis or "budget")
    axes.set_ylabel("share of images that show it")
    axes.set_ylim(-0.03, 1.03)
    by = f" erased by {outcome.method}" if outcome.method else ""
    title = spelled_out(f"{outcome.attack} on {shortened_names(outcome.concepts)}{by}")
    font = plot_font(title)
    figure.suptitle(title, x=0.01, ha="left", fontproperties=font, fontsize=12, weight="bold")
    attacked = outcome.success["attacked"]
    subtitle = (
        f"{attacked.seeds} seeds, {attacked.images} images a point; 95 % intervals over seeds"
    )
    axes.set_title(subtitle, fontsize=9, loc="left")
    axes.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1.01, 0.5))
    for edge in ("top", "right"):
        axes.spines[edge].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _draw_points(axes: "Axes", points: Sequence[CurvePoint]) -> None:
    """The curve, and its band where intervals are known."""
    budgets = [point.budget for point in points]
    means = [point.success for point in points]
    lows = [point.low for point in points if point.low is not None]
    highs = [point.high for point in points if point.high is not None]
    if len(lows) == len(highs) == len(points):
        axes.fill_between(budgets, lows, highs, color=_ATTACKED_COLOUR, alpha=0.18, linewidth=0)
    axes.plot(budgets, means, "o-", color=_ATTACKED_COLOUR, label="under attack", zorder=3)
    axes.set_xticks(budgets, [f"{budget:g}" for budget in budgets])


def _draw_references(axes: "Axes", outcome: Outcome) -> None:
    """Horizontal lines for the models without the attack, the controls, and the threshold."""
    success = outcome.success
    lines = [
        (success["original"], _ORIGINAL_COLOUR, "--", "original, plain prompt"),
        (success["plain"], _PLAIN_COLOUR, "-.", "edited, plain prompt"),
    ]
    controls = zip(outcome.controls.items(), _CONTROL_COLOURS, strict=False)
    lines += [(estimate, colour, ":", f"control: {name}") for (name, estimate), colour in controls]
    for estimate, colour, dashes, label in lines:
        axes.axhline(
            estimate.mean, color=colour, linestyle=dashes, linewidth=1.6, label=label, zorder=1
        )
    if (threshold := outcome.arguments.get("threshold")) is not None:
        axes.axhline(threshold, color="0.6", linewidth=0.8, label="counts as back", zorder=0)
