"""What is shown of a run on a board: what it is, its pictures, figures, cost and edit."""

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from PIL import Image

from erasure_lightning.files.writing import EDIT_FILE, SAMPLES_COLUMNS, SAMPLES_FILE
from erasure_lightning.metrics.estimates import Estimate
from erasure_lightning.metrics.groups import ERASING
from erasure_lightning.metrics.protocol import Result
from erasure_lightning.runs.dashboards import Board
from erasure_lightning.runs.folder import Run, slug
from erasure_lightning.runs.redaction import share_edit, shareable

#: Columns of an estimate in a table.
ENDS = ("mean", "low", "high")


def facts(description: Mapping[str, Any]) -> dict[str, Any]:
    """What a run is, of an edit's description: the method and the concepts by name, for filters and
    groups.
    """
    named = {
        "method": description["method"].rsplit(".", 1)[-1],
        "concepts": ", ".join(concept["name"] for concept in description["concepts"]),
    }
    kept = ("arguments", "backbone", "backbone_fingerprint", "seed", "versions")
    return named | {key: shareable(description[key]) for key in kept}


def show_figures(board: Board, result: Result) -> None:
    """Show what was measured: ``efficacy``, ``efficacy_low``, ``efficacy_high``, ... and a table of
    everything.
    """
    board.facts({"protocol": result.protocol.identity})
    board.figures(summary(result))
    columns = [
        "group",
        "metric",
        *(f"{when} {end}" for when in ("before", "after") for end in ENDS),
        "pictures",
    ]
    rows = [
        [group, metric, *ends(whens.get("before")), *ends(whens["after"]), whens["after"].pictures]
        for group, metrics in result.estimates.items()
        for metric, whens in metrics.items()
    ]
    board.table("figures", columns, rows)


def ends(estimate: Estimate | None) -> list[float | None]:
    """Its mean and interval as cells, empty where there is none."""
    return [None] * 3 if estimate is None else [estimate.mean, estimate.low, estimate.high]


def summary(result: Result) -> dict[str, float]:
    """The figures that runs are compared by, after the edit, each with its 95 % interval.

    ``overall`` is a harmonic mean of several: its ends are what it comes to where all of them are
    at their worst, or at their best, which is no narrower than its 95 % interval.
    """
    found: dict[str, float] = {}
    for group, metrics in result.estimates.items():
        for metric, whens in metrics.items():
            if metric != "image_text":  # the table has it
                name = group if metric == "recognized" else metric
                found |= {f"{name}{end}": value for end, value in named(whens["after"]).items()}
    overall = {"overall": result.overall("after")}
    overall |= {f"overall_{end}": _at(result, end).overall("after") for end in ("low", "high")}
    return found | {name: value for name, value in overall.items() if value is not None}


def _at(result: Result, end: str) -> Result:
    """The result with every recognition at the end of its interval that is worse (``low``) or
    better (``high``).
    """
    moved = {}
    for group, metrics in result.estimates.items():
        if "recognized" in metrics:
            worse, better = ("high", "low") if group in ERASING else ("low", "high")
            after = metrics["recognized"]["after"]
            mean = getattr(after, worse if end == "low" else better)
            moved[group] = {"recognized": {"after": after._replace(mean=mean)}}
    return Result(result.protocol, result.edit, moved)


def show_samples(board: Board, run: Run) -> None:
    """Show the grid, and its pictures as a table: prompt, group, seed, before, after."""
    if run.grid.is_file():
        board.picture("grid", _picture(run.grid))
    listed = run.samples / SAMPLES_FILE
    if listed.is_file():
        with listed.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        pairs = [
            [_picture(run.samples / row[when]) for when in ("before", "after")] for row in rows
        ]
        texts = [[row["prompt"], row["group"], int(row["seed"])] for row in rows]
        board.table(
            "pictures",
            SAMPLES_COLUMNS,
            [[*text, *pair] for text, pair in zip(texts, pairs, strict=True)],
        )


def _picture(path: Path) -> Image.Image:
    with Image.open(path) as picture:
        return picture.convert("RGB")


def show_cost(board: Board, run: Run) -> None:
    """Show what a fit has cost."""
    if run.cost.is_file():
        board.figures(
            {f"cost_{name}": value for name, value in json.loads(run.cost.read_text()).items()}
        )


def show_edit(board: Board, run: Run) -> None:
    """Show the edit, with what it was made from."""
    with TemporaryDirectory() as folder:
        copy = Path(folder, EDIT_FILE)
        board.edit(slug(run.root.name) or "edit", copy, share_edit(run.edit, copy))


def named(estimate: Estimate) -> dict[str, float]:
    """The mean and its interval, by what a figure's name ends in."""
    return {"": estimate.mean, "_low": estimate.low, "_high": estimate.high}
