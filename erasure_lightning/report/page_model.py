"""Content of a page: runs grouped by their protocol, so that only comparable ones are compared."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from erasure_lightning.metrics.groups import GROUP_HEADINGS
from erasure_lightning.report.images import EmbeddedImage
from erasure_lightning.report.page_figures import (
    ORIGINAL,
    QuestionFigures,
    measured_figures,
    prompt_fit_figures,
)
from erasure_lightning.report.run_record import RunRecord
from erasure_lightning.report.wording import limitations, percent

#: Largest width in pixels of images that are shown in narrow columns.
_THUMBNAIL_WIDTH = 128


class PageImage(NamedTuple):
    """An image of a page.

    Args:
        label: Caption of the image.
        description: Its content in words.
        image: The image; None if it was not generated.
        is_original: Whether the original model drew it.
    """

    label: str
    description: str
    image: EmbeddedImage | None
    is_original: bool


class PromptCard(NamedTuple):
    """Images of one prompt.

    Args:
        prompt: The prompt.
        lines: Its images, a line for each seed.
    """

    prompt: str
    lines: list[list[PageImage]]


class GroupPanel(NamedTuple):
    """Images of one group of prompts.

    Args:
        heading: Heading of the group.
        cards: Its prompts.
    """

    heading: str
    cards: list[PromptCard]


@dataclass(frozen=True)
class Comparison:
    """Runs that were measured by one protocol, or one run without figures.

    Args:
        runs: The runs by their labels.
        figures: Their main figures.
        prompt_fit: Similarities of images and prompts.
        overall: Harmonic mean of each run as text; that of the original under the empty label.
        panels: Their images.
        difference: How the protocol differs from the page's first one; empty for the first.
    """

    runs: Mapping[str, RunRecord]
    figures: list[QuestionFigures]
    prompt_fit: list[QuestionFigures]
    overall: dict[str, str]
    panels: list[GroupPanel]
    difference: str

    @property
    def has_thumbnails(self) -> bool:
        """Whether all images are small enough for narrow columns."""
        lines = [line for panel in self.panels for card in panel.cards for line in card.lines]
        images = [cell.image for line in lines for cell in line]
        return all(image.width <= _THUMBNAIL_WIDTH for image in images if image)

    @property
    def first(self) -> RunRecord:
        """The first run, whose protocol is that of all."""
        return next(iter(self.runs.values()))


def label_runs(runs: Sequence[RunRecord]) -> dict[str, RunRecord]:
    """Runs by unique labels: their methods, else their folders, else folders with a number."""
    for labels in ([run.method for run in runs], [run.name for run in runs]):
        if len(set(labels)) == len(runs) and all(labels) and ORIGINAL not in labels:
            return dict(zip(labels, runs, strict=True))
    return {f"{run.name} ({number})": run for number, run in enumerate(runs, start=1)}


def comparisons(
    runs: Mapping[str, RunRecord], images: Mapping[Path, EmbeddedImage]
) -> list[Comparison]:
    """Runs grouped by equal protocols, in the order of each group's first run."""
    groups: list[dict[str, RunRecord]] = []
    for label, run in runs.items():
        fitting = (group for group in groups if run.result and _difference(group, run) == "")
        if (group := next(fitting, None)) is None:
            groups.append({label: run})
        else:
            group[label] = run
    return [_comparison(group, images, groups[0]) for group in groups]


def _difference(group: Mapping[str, RunRecord], run: RunRecord) -> str | None:
    """How a run's protocol differs from one of a group; None if one of them has none."""
    pairs = [(other.result, run.result) for other in group.values()]
    differences = [a.protocol.difference(b.protocol) if a and b else None for a, b in pairs]
    return next(filter(None, differences), differences[0])


def _comparison(
    group: Mapping[str, RunRecord],
    images: Mapping[Path, EmbeddedImage],
    main: Mapping[str, RunRecord],
) -> Comparison:
    results = {label: run.result for label, run in group.items() if run.result}
    overall = {"": next(iter(results.values())).overall("before")} if results else {}
    overall |= {label: result.overall("after") for label, result in results.items()}
    return Comparison(
        runs=group,
        figures=measured_figures(group),
        prompt_fit=prompt_fit_figures(group),
        overall={label: percent(value, 1) for label, value in overall.items() if value is not None},
        panels=_panels(group, images),
        difference=_difference(main, next(iter(group.values()))) or "",
    )


def _panels(
    runs: Mapping[str, RunRecord], images: Mapping[Path, EmbeddedImage]
) -> list[GroupPanel]:
    """Images by group, prompt and seed; the original model's, under the empty label, once."""
    files: dict[str, dict[str, dict[int, dict[str, Path]]]] = {}
    for label, run in runs.items():
        for pair in run.image_pairs:
            seeds = files.setdefault(pair.group, {}).setdefault(pair.prompt, {})
            line = seeds.setdefault(pair.seed, {})
            line.setdefault("", pair.before)
            line[label] = pair.after
    panels = []
    for group, prompts in files.items():
        cards = []
        for prompt, seeds in prompts.items():
            lines = [_line(prompt, seed, seeds[seed], runs, images) for seed in sorted(seeds)]
            cards.append(PromptCard(prompt, lines))
        panels.append(GroupPanel(GROUP_HEADINGS.get(group, group).capitalize(), cards))
    return panels


def _line(
    prompt: str,
    seed: int,
    files: Mapping[str, Path],
    runs: Mapping[str, RunRecord],
    images: Mapping[Path, EmbeddedImage],
) -> list[PageImage]:
    """Images of one prompt and seed: the original model's and each run's."""
    line = []
    for label in ("", *runs):
        if not label:
            caption = "before"
            model = "the original model"
        else:
            caption = label if len(runs) > 1 else "after"
            model = f"edited by {label}"
        description = f"“{prompt}”, seed {seed}, {model}"
        image = images.get(files[label]) if label in files else None
        line.append(PageImage(caption, description, image, not label))
    return line


def limitations_by_run(runs: Mapping[str, RunRecord]) -> dict[str, list[str]]:
    """Sentences on what figures do not show, each with the labels of its runs."""
    labels: dict[str, list[str]] = {}
    for label, run in runs.items():
        for sentence in limitations(run):
            labels.setdefault(sentence, []).append(label)
    return labels
