"""What a run logged while training, as series that can be drawn."""

import csv
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

#: Points of a curve at most: as many as a screen can show.
MOST = 200

#: What `RetentionMonitor` logs and what a loss logs, by the beginning of the column's name.
MONITOR, LOSS = "monitor/", "loss/"


class Curve(NamedTuple):
    """A logged value over the steps.

    Args:
        name: Its column.
        steps: Where it was logged, ascending.
        values: What was logged.
        each: How many values a point is the mean of.
    """

    name: str
    steps: tuple[float, ...]
    values: tuple[float, ...]
    each: int

    @property
    def share(self) -> bool:
        """Whether it is one of the monitor's scores, which lie in 0..1."""
        return self.name.startswith(MONITOR)


def read_curves(path: Path, notes: list[str]) -> tuple[Curve, ...]:
    """Scores and loss terms of a ``metrics.csv``, the scores first; a column with fewer than two
    values is none.

    Args:
        path: The file; need not exist.
        notes: Where it is told that the file cannot be read.
    """
    if not path.is_file():
        return ()
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(
                csv.DictReader(line for line in file if "\0" not in line)
            )  # a kill may have cut the last one
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        notes.append(f"{path.name} cannot be read ({error}): there are no curves of the training.")
        return ()
    columns = list(rows[0]) if rows else []
    terms = [name for name in columns if name and name.startswith(LOSS)]
    names = (
        [n for n in columns if n and n.startswith(MONITOR)]
        + (["loss"] if len(terms) != 1 else [])
        + terms
    )
    found = [_thinned(name, _points(rows, name)) for name in names]
    return tuple(curve for curve in found if len(curve.steps) > 1)


def _points(rows: Iterable[dict[str, str]], name: str) -> list[tuple[float, float]]:
    points = {}
    for row in rows:
        try:
            step, value = float(row["step"]), float(row[name])
        except (KeyError, TypeError, ValueError):  # empty where something else was logged
            continue
        if math.isfinite(step) and math.isfinite(value):
            points[step] = value
    return sorted(points.items())


def _thinned(name: str, points: Sequence[tuple[float, float]]) -> Curve:
    each = max(1, math.ceil(len(points) / MOST))
    parts = [points[i : i + each] for i in range(0, len(points), each)]
    steps, values = (tuple(fmean(point[i] for point in part) for part in parts) for i in (0, 1))
    return Curve(name, steps, values, each)
