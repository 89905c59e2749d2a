"""Facts of runs, arranged as a page shows them: what can be compared stands together, and only
that.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from erasure_lightning.attacks.outcome import Outcome
from erasure_lightning.metrics.estimates import Estimate
from erasure_lightning.metrics.groups import GROUP_HEADINGS
from erasure_lightning.metrics.protocol import short_hash
from erasure_lightning.report import wording
from erasure_lightning.report.charts import SHARES, Chart, Scale, Whisker, axis_of, chart, whisker
from erasure_lightning.report.curves import LOSS, MONITOR, Curve
from erasure_lightning.report.pictures import Embedded
from erasure_lightning.report.run_record import Attempt, Facts
from erasure_lightning.report.wording import ASKED, COMPARED, HARD, counted, interval, percent

#: Of each group, how well its pictures fit their prompts.
FITTING = {
    group: (f"{heading.capitalize()}: do pictures fit their prompts?", "")
    for group, heading in GROUP_HEADINGS.items()
}

#: Width of pictures, in pixels, up to which many stand in a row.
SMALL = 128


class Row(NamedTuple):
    """A figure: whose it is, where it is drawn, and what is printed; ``past`` if it is of the
    original model.
    """

    label: str
    place: Whisker | None
    mean: str
    interval: str
    past: bool


class Question(NamedTuple):
    """Figures that answer one question.

    Args:
        text: The question.
        hint: What is good, and how much was looked at.
        ticks: What is written along the axis, with the place in percent of its length.
        rows: The figures.
    """

    text: str
    hint: str
    ticks: list[tuple[float, str]]
    rows: list[Row]


class Picture(NamedTuple):
    """A place in the grid: whose picture, what it is in words, and the picture if there is one."""

    label: str
    told: str
    shown: Embedded | None
    past: bool


class Card(NamedTuple):
    """Pictures of one prompt, a line a seed."""

    prompt: str
    lines: list[list[Picture]]


class Panel(NamedTuple):
    """Prompts of one group."""

    heading: str
    cards: list[Card]


@dataclass(frozen=True)
class Comparison:
    """Runs that were measured alike, or one that was not measured.

    Args:
        runs: By the names they go by on the page.
        questions: Their figures.
        more: Figures for who wants all of them.
        overall: The harmonic mean of each, and of the original under the empty name.
        panels: Their pictures.
        difference: In what they were measured differently from the first on the page; empty for the
            first.
    """

    runs: Mapping[str, Facts]
    questions: list[Question]
    more: list[Question]
    overall: dict[str, str]
    panels: list[Panel]
    difference: str

    @property
    def small(self) -> bool:
        """Whether its pictures fill no more than a thumbnail."""
        pictures = (
            p.shown
            for panel in self.panels
            for card in panel.cards
            for line in card.lines
            for p in line
        )
        return all(picture.width <= SMALL for picture in pictures if picture)

    @property
    def first(self) -> Facts:
        """The run that stands for all where they are alike."""
        return next(iter(self.runs.values()))


def labelled(runs: Sequence[Facts]) -> dict[str, Facts]:
    """Runs by what tells them apart: the method, else the folder, else a number too."""
    found: dict[str, Facts] = {}
    for names in ([f.method for f in runs], [f.name for f in runs]):
        if len(set(names)) == len(runs) and all(names):
            return dict(zip(names, runs, strict=True))
    for number, facts in enumerate(runs, start=1):
        found[f"{facts.name} ({number})"] = facts
    return found


def comparisons(runs: Mapping[str, Facts], pictures: Mapping[Path, Embedded]) -> list[Comparison]:
    """Runs measured by equal protocols together, in the order of their first."""
    groups: dict[str, dict[str, Facts]] = {}
    for label, facts in runs.items():
        alike = facts.result.protocol.identity if facts.result else f"unmeasured {label}"
        groups.setdefault(alike, {})[label] = facts
    return [_comparison(group, pictures, next(iter(groups.values()))) for group in groups.values()]


def _comparison(
    group: Mapping[str, Facts], pictures: Mapping[Path, Embedded], main: Mapping[str, Facts]
) -> Comparison:
    results = {label: facts.result for label, facts in group.items() if facts.result}
    mine, theirs = (next(iter(runs.values())).result for runs in (group, main))
    overall = {"": next(iter(results.values())).overall("before")} if results else {}
    overall |= {label: result.overall("after") for label, result in results.items()}
    return Comparison(
        runs=group,
        questions=[*_asked(group, "recognized", ASKED), *_structure(group)],
        more=list(_asked(group, "image_text", FITTING)),
        overall={label: percent(value, 1) for label, value in overall.items() if value is not None},
        panels=_panels(group, pictures),
        difference=theirs.protocol.difference(mine.protocol) if mine and theirs else "",
    )


def _estimates(
    group: Mapping[str, Facts], name: str, metric: str
) -> tuple[Estimate | None, dict[str, Estimate]]:
    """Of the original model, and of every run that has it."""
    found = {
        label: f.result.estimates.get(name, {}).get(metric, {})
        for label, f in group.items()
        if f.result
    }
    before = next((whens["before"] for whens in found.values() if "before" in whens), None)
    return before, {label: whens["after"] for label, whens in found.items() if "after" in whens}


def _asked(
    group: Mapping[str, Facts], metric: str, texts: Mapping[str, tuple[str, str]]
) -> Iterable[Question]:
    shares = metric == "recognized"
    for name, (text, better) in texts.items():
        before, after = _estimates(group, name, metric)
        if after:
            yield question(text, better, {"original": before, **after}, SHARES, percents=shares)


def _structure(group: Mapping[str, Facts]) -> Iterable[Question]:
    for name, (text, better, unit) in COMPARED.items():
        _, after = _estimates(group, "structure", name)
        if after:
            axis = axis_of(after.values()) if name == "distance" else SHARES
            asked = question(text, better, after, axis, percents=False)
            yield asked._replace(hint=f"{unit}; {asked.hint}")


def question(
    text: str, better: str, estimates: Mapping[str, Estimate | None], axis: Scale, percents: bool
) -> Question:
    """Lay out the figures that answer a question; those named ``original`` are of the past."""
    measured = {label: e for label, e in estimates.items() if e is not None}
    if percents:
        rows = [
            Row(n, whisker(e, axis), percent(e.mean, 1), interval(e, 1), n == "original")
            for n, e in measured.items()
        ]
    else:
        rows = [
            Row(
                n,
                whisker(e, axis),
                f"{e.mean:.3f}",
                f"[{e.low:.3f},{HARD}{e.high:.3f}]",
                n == "original",
            )
            for n, e in measured.items()
        ]
    last = list(measured.values())[-1]
    hint = f"{counted(last.pictures, 'picture')}, {counted(last.seeds, 'seed')}"
    write: Callable[[float], str] = percent if percents else axis.text
    ticks = [(100 * axis.share(t), write(t)) for t in axis.ticks]
    return Question(text, f"{better} is better; {hint}" if better else hint, ticks, rows)


def _panels(group: Mapping[str, Facts], pictures: Mapping[Path, Embedded]) -> list[Panel]:
    """Pictures by group and prompt; those of the original stand there once."""
    made: dict[str, dict[str, dict[int, dict[str, Path]]]] = {}
    for label, facts in group.items():
        for sample in facts.samples:
            line = (
                made.setdefault(sample.group, {})
                .setdefault(sample.prompt, {})
                .setdefault(sample.seed, {})
            )
            line.setdefault("", sample.before)
            line[label] = sample.after
    return [
        Panel(
            GROUP_HEADINGS.get(name, name).capitalize(),
            [
                Card(
                    p,
                    [
                        _line(p, seed, files, group, pictures)
                        for seed, files in sorted(seeds.items())
                    ],
                )
                for p, seeds in prompts.items()
            ],
        )
        for name, prompts in made.items()
    ]


def _line(
    prompt: str,
    seed: int,
    files: Mapping[str, Path],
    group: Mapping[str, Facts],
    pictures: Mapping[Path, Embedded],
) -> list[Picture]:
    named = {
        "": "before",
        **(dict.fromkeys(group, "after") if len(group) == 1 else {label: label for label in group}),
    }
    return [
        Picture(
            name,
            f"“{prompt}”, seed {seed},"
            f" {'the original model' if not label else f'edited by {label}'}",
            pictures.get(files[label]) if label in files else None,
            not label,
        )
        for label, name in named.items()
    ]


def limits(runs: Mapping[str, Facts]) -> dict[str, list[str]]:
    """What figures do not say, each with the runs of which it holds."""
    found: dict[str, list[str]] = {}
    for label, facts in runs.items():
        for limit in wording.limits(facts):
            found.setdefault(limit, []).append(label)
    return found


def sieges(runs: Mapping[str, Facts]) -> list[dict[str, Attempt]]:
    """Attempts by the runs they were made on; those with equal attacks, budgets and protocols stand
    together.
    """
    found: dict[str, dict[str, Attempt]] = {}
    for label, facts in runs.items():
        for attempt in facts.attacks:
            outcome = attempt.outcome
            alike = short_hash([outcome.class_path, outcome.arguments, outcome.protocol.identity])
            while label in found.get(alike, {}):  # one run was attacked twice alike
                alike += "again"
            found.setdefault(alike, {})[label] = attempt
    return list(found.values())


def attack_question(attempts: Mapping[str, Attempt]) -> Question:
    """What an attack brought back of each run, beside what plain prompts do."""
    figures: dict[str, Estimate | None] = {}
    for label, (outcome, _) in attempts.items():
        whose = label if len(attempts) > 1 else "edited"
        figures.setdefault("original, plain prompts", outcome.success["original"])
        figures[f"{whose}, plain prompts"] = outcome.success["plain"]
        figures[f"{whose}, attacked"] = outcome.success["attacked"]
    asked = question(
        "Share of pictures recognised as the concept", "", figures, SHARES, percents=True
    )
    return asked._replace(
        rows=[row._replace(past=not row.label.endswith("attacked")) for row in asked.rows]
    )


def attack_chart(outcome: Outcome, whose: str) -> Chart | None:
    """Success against what the attack was allowed to spend; ``whose`` names the run where there are
    several.
    """
    points = sorted(outcome.curve or ())
    if len(points) < 2:
        return None
    title = f"{whose} comes back, by budget".strip()
    return chart(
        title, [p.budget for p in points], [p.success for p in points], "budget", share=True
    )


def training_chart(curve: Curve) -> Chart:
    """A logged value over the steps."""
    return chart(
        curve.name.removeprefix(MONITOR).replace(LOSS, "loss: "),
        curve.steps,
        curve.values,
        "step",
        share=curve.share,
    )
