"""Summary of a benchmark: means with intervals, ranks, and the Pareto front of its methods."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, harmonic_mean

from erasure_lightning.benchmark.jobs import Status
from erasure_lightning.benchmark.statistics import Interval, bootstrap, front, hypervolume, ranks
from erasure_lightning.benchmark.table import PROTOCOL_SUFFIX, CellRow
from erasure_lightning.errors import ErasureError

#: Figures of a summary, and whether higher is better.
_HIGHER_IS_BETTER = {
    "efficacy": False,
    "generality": False,
    "neighbours": True,
    "specificity": True,
    "similarity": True,
    "distance": False,
    "harmonic": True,
}


@dataclass(frozen=True)
class MethodSummary:
    """Means, ranks and Pareto position of one method in a benchmark.

    Args:
        method: Its name.
        finished: How many of its cells were measured.
        cells: How many cells it has.
        figures: Mean of each figure over concepts, with its interval; without figures that were
            not measured.
        erasure, retention: The coordinates of the Pareto plot, the latter the specificity; None
            before the first cell.
        ranks: Mean over concepts of its rank among the complete methods, by figure; empty unless
            it is complete.
        on_front: Whether no complete method erases and retains at least as well, and one of them
            better.
        contribution: The area that it alone adds to the hypervolume of the complete methods.
        seconds: Mean duration of training.
    """

    method: str
    finished: int
    cells: int
    figures: dict[str, Interval]
    erasure: Interval | None
    retention: Interval | None
    ranks: dict[str, float]
    on_front: bool
    contribution: float
    seconds: float | None

    @property
    def complete(self) -> bool:
        """Whether all of its cells were measured, so that its means are over all concepts."""
        return self.finished == self.cells


@dataclass(frozen=True)
class Summary:
    """Summary of a benchmark.

    Args:
        methods: The complete methods by their mean rank in the harmonic mean, then the others.
        hypervolume: The area under the complete methods' Pareto front, 1 at best; None without
            complete methods.
        figures: Names of the measured figures, those of attacks last.
    """

    methods: tuple[MethodSummary, ...]
    hypervolume: float | None
    figures: tuple[str, ...]


def summarize(table: Sequence[CellRow]) -> Summary:
    """Summarise a benchmark's table.

    Args:
        table: The rows of all cells; those of unfinished cells are left out of every mean.

    Raises:
        ErasureError: If no cell has finished.
    """
    finished = [row for row in table if row["status"] == Status.FINISHED]
    if not finished:
        raise ErasureError("A summary needs at least one finished cell; found none.")
    figures = tuple(
        name for name in higher_is_better(table) if any(row[name] is not None for row in finished)
    )
    names = list(dict.fromkeys(row["method"] for row in table))
    complete = [
        name
        for name in names
        if all(row["status"] == Status.FINISHED for row in rows_of(table, name))
    ]
    points = {}
    for name in complete:
        if point := _pareto_point(rows_of(finished, name)):
            points[name] = point
    best = {list(points)[i] for i in front(list(points.values()))}
    mean_ranks = _mean_ranks(table, complete, figures)
    methods = [
        _method_summary(
            name, rows_of(table, name), figures, mean_ranks.get(name, {}), name in best, points
        )
        for name in names
    ]
    methods.sort(key=lambda method: (not method.complete, method.ranks.get("harmonic", 0.0)))
    volume = hypervolume(list(points.values())) if points else None
    return Summary(tuple(methods), volume, figures)


def higher_is_better(table: Sequence[CellRow]) -> dict[str, bool]:
    """The figures of a table, and whether higher is better; for success of attacks it is not."""
    attacks = [
        name
        for name in table[0]
        if name.startswith("attack_") and not name.endswith(("_low", "_high", PROTOCOL_SUFFIX))
    ]
    return _HIGHER_IS_BETTER | dict.fromkeys(attacks, False)


def rows_of(table: Iterable[CellRow], method: str) -> list[CellRow]:
    """The rows of one method."""
    return [row for row in table if row["method"] == method]


def erasure_score(row: CellRow) -> float | None:
    """Harmonic mean of 1 - efficacy and 1 - generality, 0 to 1, over those that were measured."""
    terms = [1 - row[name] for name in ("efficacy", "generality") if row[name] is not None]
    return harmonic_mean(terms) if terms else None


def values_by_concept(values: Iterable[tuple[str, float | None]]) -> list[list[float]]:
    """The measured values of each concept, one list per concept."""
    groups: dict[str, list[float]] = {}
    for concept, value in values:
        if value is not None:
            groups.setdefault(concept, []).append(value)
    return list(groups.values())


def means_over_concepts(rows: Sequence[CellRow], figures: Sequence[str]) -> dict[str, Interval]:
    """Mean of each measured figure over the concepts of finished cells, with its interval."""
    means = {f: _interval((row["concept"], row[f]) for row in rows) for f in figures}
    return {figure: mean for figure, mean in means.items() if mean}


def _interval(values: Iterable[tuple[str, float | None]]) -> Interval | None:
    groups = values_by_concept(values)
    return bootstrap(groups) if groups else None


def _pareto_point(rows: Sequence[CellRow]) -> tuple[float, float] | None:
    """Means over concepts of erasure and specificity; None if one of them was not measured."""
    erasures = values_by_concept((row["concept"], erasure_score(row)) for row in rows)
    retentions = values_by_concept((row["concept"], row["specificity"]) for row in rows)
    if not erasures or not retentions:
        return None
    return fmean(map(fmean, erasures)), fmean(map(fmean, retentions))


def _mean_ranks(
    table: Sequence[CellRow], methods: Sequence[str], figures: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Mean over concepts of the methods' ranks in each figure.

    Concepts in which a method lacks the figure are left out.
    """
    higher = higher_is_better(table)
    mean_ranks: dict[str, dict[str, float]] = {method: {} for method in methods}
    for figure in figures:
        ranks_by_concept: list[list[float]] = []
        for concept in dict.fromkeys(row["concept"] for row in table):
            rows = [row for row in table if row["concept"] == concept and row[figure] is not None]
            values = [[row[figure] for row in rows_of(rows, method)] for method in methods]
            if values and all(values):
                ranks_by_concept.append(ranks(list(map(fmean, values)), higher[figure]))
        if ranks_by_concept:
            means = map(fmean, zip(*ranks_by_concept, strict=True))
            for method, mean in zip(methods, means, strict=True):
                mean_ranks[method][figure] = mean
    return mean_ranks


def _method_summary(
    method: str,
    rows: Sequence[CellRow],
    figures: Sequence[str],
    mean_ranks: dict[str, float],
    on_front: bool,
    points: dict[str, tuple[float, float]],
) -> MethodSummary:
    finished = [row for row in rows if row["status"] == Status.FINISHED]
    means = means_over_concepts(finished, figures)
    seconds = [row["seconds"] for row in finished if row["seconds"] is not None]
    contribution = 0.0
    if method in points:
        others = [point for name, point in points.items() if name != method]
        contribution = hypervolume([*points.values()]) - hypervolume(others)
    return MethodSummary(
        method=method,
        finished=len(finished),
        cells=len(rows),
        figures=means,
        erasure=_interval((row["concept"], erasure_score(row)) for row in finished),
        retention=means.get("specificity"),
        ranks=mean_ranks,
        on_front=on_front,
        contribution=contribution,
        seconds=fmean(seconds) if seconds else None,
    )
