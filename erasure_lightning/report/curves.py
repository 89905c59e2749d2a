"""Curves of the values that a run logged during training."""

import csv
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

#: Points of a curve at most, about as many as a screen can show.
_MAX_POINTS = 200

#: Prefix of the columns that `RetentionMonitor` logs.
MONITOR_PREFIX = "monitor/"

#: Prefix of the columns that hold terms of the loss.
LOSS_PREFIX = "loss/"


class Curve(NamedTuple):
    """A logged value over the training steps.

    Args:
        name: The value's column.
        steps: Steps of the points, ascending.
        values: Values of the points.
        window: Number of logged values that each point is the mean of.
    """

    name: str
    steps: tuple[float, ...]
    values: tuple[float, ...]
    window: int

    @property
    def is_score(self) -> bool:
        """Whether it is a score of `RetentionMonitor`, from 0 to 1."""
        return self.name.startswith(MONITOR_PREFIX)


def read_curves(path: Path, notes: list[str]) -> tuple[Curve, ...]:
    """Read the scores and loss terms of a ``metrics.csv``, the scores first.

    Columns with fewer than two values are left out.

    Args:
        path: The file; need not exist.
        notes: Receives a sentence if the file cannot be read.
    """
    if not path.is_file():
        return ()
    try:
        with path.open(newline="", encoding="utf-8") as file:
            # A killed run may have cut its last line, or filled it with null characters.
            whole = (line for line in file if line.endswith("\n") and "\0" not in line)
            rows = list(csv.DictReader(whole))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        notes.append(f"{path.name} cannot be read ({error}): curves of the training are left out.")
        return ()
    columns = [name for name in rows[0] if name] if rows else []
    scores = [name for name in columns if name.startswith(MONITOR_PREFIX)]
    terms = [name for name in columns if name.startswith(LOSS_PREFIX)]
    total = ["loss"] if len(terms) != 1 else []  # a single term equals the loss
    curves = [_curve(name, _points(rows, name)) for name in (*scores, *total, *terms)]
    return tuple(curve for curve in curves if len(curve.steps) > 1)


def _points(rows: Iterable[dict[str, str]], name: str) -> list[tuple[float, float]]:
    points = {}
    for row in rows:
        try:
            step = float(row["step"])
            value = float(row[name])
        except (KeyError, TypeError, ValueError):  # empty where other values were logged
            continue
        if math.isfinite(step) and math.isfinite(value):
            points[step] = value
    return sorted(points.items())


def _curve(name: str, points: Sequence[tuple[float, float]]) -> Curve:
    """The curve through the means of windows, as many as make `_MAX_POINTS` at most."""
    window = max(1, math.ceil(len(points) / _MAX_POINTS))
    parts = [points[i : i + window] for i in range(0, len(points), window)]
    steps = tuple(fmean(step for step, _ in part) for part in parts)
    values = tuple(fmean(value for _, value in part) for part in parts)
    return Curve(name, steps, values, window)
