"""Figures of a page: measured shares and distances, success of attacks, and training curves."""

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from erasure_lightning.attacks.outcome import Outcome
from erasure_lightning.metrics.estimates import Estimate
from erasure_lightning.metrics.groups import GROUP_HEADINGS
from erasure_lightning.report.charts import SHARES, Chart, Scale, Whisker, axis_of, chart, whisker
from erasure_lightning.report.curves import LOSS_PREFIX, MONITOR_PREFIX, Curve
from erasure_lightning.report.run_record import AttackRecord, RunRecord
from erasure_lightning.report.wording import (
    GROUP_TITLES,
    NO_BREAK_SPACE,
    STRUCTURE_QUESTIONS,
    interval,
    percent,
    pluralized,
)

#: Label of the original model's figures.
ORIGINAL = "original"

#: Question about the fit of images and prompts in each group.
_PROMPT_FIT_QUESTIONS = {
    group: (f"{heading.capitalize()}: do images fit their prompts?", "")
    for group, heading in GROUP_HEADINGS.items()
}


class FigureRow(NamedTuple):
    """A mean with its interval.

    Args:
        label: The model or run that was measured.
        place: Where the figure is drawn on its axis; None if it is not finite.
        mean: The mean as text.
        interval: The 95 % interval as text.
        is_reference: Whether it is a reference that the edited models' figures are compared with.
    """

    label: str
    place: Whisker | None
    mean: str
    interval: str
    is_reference: bool


class QuestionFigures(NamedTuple):
    """Figures that answer one question.

    Args:
        text: The question.
        hint: Which values are better, and the number of images and seeds.
        ticks: Labels of the axis, each with its place in percent of the axis' length.
        rows: The figures.
    """

    text: str
    hint: str
    ticks: list[tuple[float, str]]
    rows: list[FigureRow]


def measured_figures(runs: Mapping[str, RunRecord]) -> list[QuestionFigures]:
    """Recognised shares of each group, and similarity and distance of other images."""
    figures = [*_group_figures(runs, "recognized", GROUP_TITLES)]
    for metric, (text, better, unit) in STRUCTURE_QUESTIONS.items():
        _, after = _estimates(runs, "structure", metric)
        if after:
            axis = axis_of(after.values()) if metric == "distance" else SHARES
            answer = question_figures(text, better, after, axis, percents=False)
            figures.append(answer._replace(hint=f"{unit}; {answer.hint}"))
    return figures


def prompt_fit_figures(runs: Mapping[str, RunRecord]) -> list[QuestionFigures]:
    """Similarities of images and their prompts in each group."""
    return list(_group_figures(runs, "image_text", _PROMPT_FIT_QUESTIONS))


def _group_figures(
    runs: Mapping[str, RunRecord], metric: str, questions: Mapping[str, tuple[str, str]]
) -> Iterable[QuestionFigures]:
    percents = metric == "recognized"
    for group, (text, better) in questions.items():
        before, after = _estimates(runs, group, metric)
        if after:
            estimates = {ORIGINAL: before, **after}
            yield question_figures(text, better, estimates, SHARES, percents=percents)


def _estimates(
    runs: Mapping[str, RunRecord], group: str, metric: str
) -> tuple[Estimate | None, dict[str, Estimate]]:
    """The estimates of the original model and of every run that was measured."""
    estimates = {
        label: record.result.estimates.get(group, {}).get(metric, {})
        for label, record in runs.items()
        if record.result
    }
    before = next((times["before"] for times in estimates.values() if "before" in times), None)
    return before, {label: times["after"] for label, times in estimates.items() if "after" in times}


def question_figures(
    text: str, better: str, estimates: Mapping[str, Estimate | None], axis: Scale, percents: bool
) -> QuestionFigures:
    """Lay out the figures that answer a question.

    Args:
        text: The question.
        better: ``lower`` or ``higher``; empty if neither is better.
        estimates: Estimates by the label of what was measured; ``original`` is a reference.
        axis: Axis of all figures.
        percents: Whether values are printed in percent.
    """
    measured = {label: estimate for label, estimate in estimates.items() if estimate is not None}
    rows = []
    for label, estimate in measured.items():
        if percents:
            mean = percent(estimate.mean, 1)
            ends = interval(estimate, 1)
        else:
            mean = f"{estimate.mean:.3f}"
            ends = f"[{estimate.low:.3f},{NO_BREAK_SPACE}{estimate.high:.3f}]"
        rows.append(FigureRow(label, whisker(estimate, axis), mean, ends, label == ORIGINAL))
    counts = [estimate.images for estimate in measured.values()]
    fewer = "" if min(counts) == max(counts) else f"{min(counts):,} to "
    seeds = next(iter(measured.values())).seeds
    hint = f"{fewer}{pluralized(max(counts), 'image')}, {pluralized(seeds, 'seed')}"
    if better:
        hint = f"{better} is better; {hint}"
    write: Callable[[float], str] = percent if percents else axis.text
    ticks = [(100 * axis.share(tick), write(tick)) for tick in axis.ticks]
    return QuestionFigures(text, hint, ticks, rows)


def grouped_attacks(runs: Mapping[str, RunRecord]) -> list[dict[str, AttackRecord]]:
    """Attacks of equal class, arguments and protocol, by the run that each attacked."""
    groups: list[dict[str, AttackRecord]] = []
    for label, record in runs.items():
        for attack in record.attacks:
            fitting = (
                group
                for group in groups  # a second equal attack on one run begins another
                if label not in group and all(_is_equal(attack, other) for other in group.values())
            )
            if (group := next(fitting, None)) is None:
                groups.append({label: attack})
            else:
                group[label] = attack
    return groups


def _is_equal(attack: AttackRecord, other: AttackRecord) -> bool:
    one = attack.outcome
    two = other.outcome
    same_class = one.class_path == two.class_path
    differs = one.arguments != two.arguments or one.protocol.difference(two.protocol)
    return same_class and not differs


def attack_figures(attacks: Mapping[str, AttackRecord]) -> QuestionFigures:
    """Success of equal attacks on several runs, beside that of plain prompts and controls."""
    estimates: dict[str, Estimate | None] = {}
    for label, (outcome, _) in attacks.items():
        model = label if len(attacks) > 1 else "edited"
        estimates.setdefault("original, plain prompts", outcome.success["original"])
        estimates[f"{model}, plain prompts"] = outcome.success["plain"]
        estimates[f"{model}, attacked"] = outcome.success["attacked"]
        for name, estimate in outcome.controls.items():
            estimates[f"{model}, control: {name}"] = estimate
    text = "Share of images recognised as the concept"
    figures = question_figures(text, "", estimates, SHARES, percents=True)
    rows = [row._replace(is_reference=not row.label.endswith("attacked")) for row in figures.rows]
    return figures._replace(rows=rows)


def attack_chart(outcome: Outcome, label: str) -> Chart | None:
    """Success of an attack against its budget; None without a curve.

    Args:
        outcome: The attack's outcome.
        label: The attacked run; empty if it is the only one.
    """
    points = sorted(outcome.curve or ())
    if len(points) < 2:
        return None
    title = f"{label}: success by budget" if label else "success by budget"
    budgets = [point.budget for point in points]
    successes = [point.success for point in points]
    return chart(title, budgets, successes, "budget", share=True)


def training_chart(curve: Curve) -> Chart:
    """A logged value against the training step."""
    title = curve.name.removeprefix(MONITOR_PREFIX).replace(LOSS_PREFIX, "loss: ")
    return chart(title, curve.steps, curve.values, "step", share=curve.is_score)
