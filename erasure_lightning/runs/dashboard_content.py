"""Content of a run's dashboard: its config, images, figures, cost and edit."""

import csv
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from PIL import Image

from erasure_lightning.errors import ErasureError
from erasure_lightning.files.writing import EDIT_FILE, SAMPLES_COLUMNS, SAMPLES_FILE
from erasure_lightning.metrics.estimates import Estimate
from erasure_lightning.metrics.groups import ERASURE_GROUPS
from erasure_lightning.metrics.protocol import Result
from erasure_lightning.runs.dashboards import DashboardWriter
from erasure_lightning.runs.folder import Run, slug
from erasure_lightning.runs.redaction import redact_paths, write_redacted_edit

#: Columns of an estimate's mean and interval.
INTERVAL_COLUMNS = ("mean", "low", "high")


def run_config(description: Mapping[str, Any]) -> dict[str, Any]:
    """A run's config from an edit's description, with method and concepts as names."""
    names = {
        "method": description["method"].rsplit(".", 1)[-1],
        "concepts": ", ".join(concept["name"] for concept in description["concepts"]),
    }
    keys = ("arguments", "backbone", "backbone_fingerprint", "seed", "versions")
    return names | {key: redact_paths(description[key]) for key in keys}


def show_figures(writer: DashboardWriter, result: Result) -> None:
    """Logs the measured figures (``efficacy``, ``efficacy_low``, ...) and a table of them all."""
    writer.log_config({"protocol": result.protocol.identity})
    writer.log_summary(headline_figures(result))
    intervals = [f"{when} {end}" for when in ("before", "after") for end in INTERVAL_COLUMNS]
    columns = ["group", "metric", *intervals, "images"]
    rows = [
        [
            group,
            metric,
            *interval_cells(whens.get("before")),
            *interval_cells(whens["after"]),
            whens["after"].images,
        ]
        for group, metrics in result.estimates.items()
        for metric, whens in metrics.items()
    ]
    writer.log_table("figures", columns, rows)


def interval_cells(estimate: Estimate | None) -> list[float | None]:
    """Mean and interval as cells, empty without an estimate."""
    return [None] * 3 if estimate is None else [estimate.mean, estimate.low, estimate.high]


def headline_figures(result: Result) -> dict[str, float]:
    """The figures that runs are compared by, after the edit, each with its 95 % interval.

    ``overall`` is a harmonic mean of several: the ends of its interval are its values with all of
    them at their worst or best ends, which is no narrower than its 95 % interval.
    """
    figures: dict[str, float] = {}
    for group, metrics in result.estimates.items():
        for metric, whens in metrics.items():
            if metric != "image_text":  # in the table alone
                name = group if metric == "recognized" else metric
                for end, value in interval_figures(whens["after"]).items():
                    figures[f"{name}{end}"] = value
    overall = {"overall": result.overall("after")}
    overall |= {f"overall_{end}": _at(result, end).overall("after") for end in ("low", "high")}
    return figures | {name: value for name, value in overall.items() if value is not None}


def _at(result: Result, end: str) -> Result:
    """The result with each recognition at the worse (``low``) or better (``high``) end."""
    changed = {}
    for group, metrics in result.estimates.items():
        if "recognized" in metrics:
            worse, better = ("high", "low") if group in ERASURE_GROUPS else ("low", "high")
            after = metrics["recognized"]["after"]
            mean = getattr(after, worse if end == "low" else better)
            changed[group] = {"recognized": {"after": after._replace(mean=mean)}}
    return Result(result.protocol, result.edit, changed)


def show_samples(writer: DashboardWriter, run: Run) -> None:
    """Logs the grid, and its images as a table: prompt, group, seed, before, after.

    Raises:
        ErasureError: If an image or their list cannot be read.
    """
    if run.grid.is_file():
        with _reading(run.grid):
            grid = _image(run.grid)
        writer.log_image("grid", grid)
    samples = run.samples / SAMPLES_FILE
    if samples.is_file():
        with _reading(run.samples), samples.open(newline="", encoding="utf-8") as file:
            cells = [_sample(run.samples, row) for row in csv.DictReader(file)]
        writer.log_table("samples", SAMPLES_COLUMNS, cells)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Raise the errors of missing, broken and foreign images as one of ours."""
    try:
        yield
    except (OSError, SyntaxError, LookupError, TypeError, ValueError, csv.Error) as error:
        raise ErasureError(
            f"{path} needs images as `erasure test` writes them; found others ({error}). Delete it"
            " to log the rest."
        ) from error


def _sample(folder: Path, row: Mapping[str, str]) -> list[Any]:
    """A row of the table of images; like reports, it reads no image outside the folder."""
    images = [_image(folder / Path(row[when]).name) for when in ("before", "after")]
    return [row["prompt"], row["group"], int(row["seed"]), *images]


def _image(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


def show_cost(writer: DashboardWriter, run: Run) -> None:
    """Logs the cost of a fit.

    Raises:
        ErasureError: If it cannot be read.
    """
    if run.cost.is_file():
        try:
            cost = json.loads(run.cost.read_text(encoding="utf-8"))
            figures = {f"cost_{name}": float(value) for name, value in cost.items()}
        except (AttributeError, TypeError, ValueError) as error:
            raise ErasureError(
                f"{run.cost} needs the cost as `erasure fit` writes it; found other content"
                f" ({error}). Delete it to log the rest."
            ) from error
        writer.log_summary(figures)


def show_edit(writer: DashboardWriter, run: Run) -> None:
    """Logs the edit with its metadata."""
    name = slug(run.name) or "edit"
    with TemporaryDirectory() as folder:
        copy = Path(folder, EDIT_FILE)
        writer.log_edit(name, copy, write_redacted_edit(run.edit, copy))


def interval_figures(estimate: Estimate) -> dict[str, float]:
    """Mean and interval, by the suffix of the figure's name."""
    return {"": estimate.mean, "_low": estimate.low, "_high": estimate.high}
