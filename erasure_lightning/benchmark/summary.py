"""What follows from a benchmark's table: each method's means with intervals, ranks, and who is on
the Pareto front.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, harmonic_mean

from erasure_lightning.benchmark.jobs import Status
from erasure_lightning.benchmark.statistics import Interval, bootstrap, front, hypervolume, ranks
from erasure_lightning.benchmark.table import PROTOCOL, Row
from erasure_lightning.errors import ErasureError

#: Figures of a summary, and whether higher is better.
DIRECTIONS = {
    "efficacy": False, "generality": False, "neighbours": True, "specificity": True, "similarity": True,
    "distance": False,
    "harmonic": True,
}  # fmt: skip


@dataclass(frozen=True)
class Standing:
    """A method's place in a benchmark.

    Args:
        method: Its name.
        finished, cells: How many of its cells were measured, out of how many.
        figures: Mean of each figure over concepts, with its interval; those measured nowhere are
            left out.
        erasure, retention: The coordinates of the Pareto plot; None before the first cell.
        ranks: Mean over concepts of its rank among the complete methods, by figure; empty unless it
            is complete.
        on_front: Whether no complete method erases and retains at least as well, and one of them
            better.
        contribution: The area that it alone adds to the hypervolume of the complete methods.
        seconds: Mean of training.
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
        """Whether all of its cells were measured; otherwise its means are over other concepts than
        those of others.
        """
        return self.finished == self.cells


@dataclass(frozen=True)
class Summary:
    """A benchmark at a glance.

    Args:
        standings: The methods', the complete ones by their mean rank in the harmonic mean, then the
            others.
        hypervolume: The area under the complete methods' Pareto front, 1 at best; None without
            complete methods.
        figures: Those that were measured, attacks behind the others.
    """

    standings: tuple[Standing, ...]
    hypervolume: float | None
    figures: tuple[str, ...]


def summarize(table: Sequence[Row]) -> Summary:
    """Bring a table's rows together.

    Args:
        table: All cells' rows, finished or not; what is not finished counts for nothing, not for
            zero.

    Raises:
        ErasureError: If no cell has finished.
    """
    done = [row for row in table if row["status"] == Status.FINISHED]
    if not done:
        raise ErasureError("A summary needs at least one finished cell; found none.")
    figures = tuple(
        name for name in directions(table) if any(row[name] is not None for row in done)
    )
    methods = list(dict.fromkeys(row["method"] for row in table))
    complete = [m for m in methods if all(row["status"] == Status.FINISHED for row in of(table, m))]
    points = {m: _point(of(done, m)) for m in complete}
    known = {m: p for m, p in points.items() if p}
    best = {list(known)[i] for i in front(list(known.values()))}
    ranked = _ranks(table, complete, figures)
    standings = [
        _standing(m, of(table, m), figures, ranked.get(m, {}), m in best, known) for m in methods
    ]
    standings.sort(key=lambda s: (not s.complete, s.ranks.get("harmonic", 0.0)))
    return Summary(tuple(standings), hypervolume(list(known.values())) if known else None, figures)


def directions(table: Sequence[Row]) -> dict[str, bool]:
    """Figures of a table, and whether higher is better; an attack had better not succeed."""
    attacks = [
        n
        for n in table[0]
        if n.startswith("attack_") and not n.endswith(("_low", "_high", PROTOCOL))
    ]
    return DIRECTIONS | dict.fromkeys(attacks, False)


def of(table: Iterable[Row], method: str) -> list[Row]:
    """A method's rows."""
    return [row for row in table if row["method"] == method]


def erasure(row: Row) -> float | None:
    """How much is forgotten, 0..1: the harmonic mean of 1 - efficacy and 1 - generality, of what
    was measured.
    """
    terms = [1 - row[name] for name in ("efficacy", "generality") if row[name] is not None]
    return harmonic_mean(terms) if terms else None


def retention(row: Row) -> float | None:
    """How much is kept, 0..1: specificity."""
    kept = row["specificity"]
    return None if kept is None else float(kept)


def by_concept(values: Iterable[tuple[str, float | None]]) -> list[list[float]]:
    """What was measured, a list for each concept."""
    found: dict[str, list[float]] = {}
    for concept, value in values:
        if value is not None:
            found.setdefault(concept, []).append(value)
    return list(found.values())


def _estimate(values: Iterable[tuple[str, float | None]]) -> Interval | None:
    groups = by_concept(values)
    return bootstrap(groups) if groups else None


def _point(done: Sequence[Row]) -> tuple[float, float] | None:
    both = [
        by_concept((row["concept"], of_row(row)) for row in done) for of_row in (erasure, retention)
    ]
    return (fmean(map(fmean, both[0])), fmean(map(fmean, both[1]))) if all(both) else None


def _ranks(
    table: Sequence[Row], complete: Sequence[str], figures: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Mean over concepts of the complete methods' ranks; what a concept was not measured in ranks
    nobody in it.
    """
    higher, found = directions(table), {m: dict[str, float]() for m in complete}
    for figure in figures:
        places: list[list[float]] = []
        for concept in dict.fromkeys(row["concept"] for row in table):
            rows = [row for row in table if row["concept"] == concept and row[figure] is not None]
            values = [[row[figure] for row in of(rows, m)] for m in complete]
            if values and all(values):
                places.append(ranks([fmean(v) for v in values], higher[figure]))
        if places:
            for method, mean in zip(complete, map(fmean, zip(*places, strict=True)), strict=True):
                found[method][figure] = mean
    return found


def _standing(
    method: str,
    rows: Sequence[Row],
    figures: Sequence[str],
    ranked: dict[str, float],
    best: bool,
    points: dict[str, tuple[float, float]],
) -> Standing:
    done = [row for row in rows if row["status"] == Status.FINISHED]
    means = {f: _estimate((row["concept"], row[f]) for row in done) for f in figures}
    others = [point for name, point in points.items() if name != method]
    seconds = [row["seconds"] for row in done if row["seconds"] is not None]
    return Standing(
        method=method,
        finished=len(done),
        cells=len(rows),
        figures={f: mean for f, mean in means.items() if mean},
        erasure=_estimate((row["concept"], erasure(row)) for row in done),
        retention=_estimate((row["concept"], retention(row)) for row in done),
        ranks=ranked,
        on_front=best,
        contribution=(
            hypervolume([*points.values()]) - hypervolume(others) if method in points else 0.0
        ),
        seconds=fmean(seconds) if seconds else None,
    )
