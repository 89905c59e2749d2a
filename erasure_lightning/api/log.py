"""Finished runs and outcomes of attacks on Weights & Biases or TensorBoard."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger

from erasure_lightning.attacks.dashboards import show_attacks
from erasure_lightning.attacks.outcome import OUTCOME_FILE, Outcome
from erasure_lightning.edits.edit import read_edit_metadata
from erasure_lightning.errors import ErasureError
from erasure_lightning.metrics.protocol import Result
from erasure_lightning.runs.csv_log import read_metrics
from erasure_lightning.runs.dashboard_content import (
    run_config,
    show_cost,
    show_edit,
    show_figures,
    show_samples,
)
from erasure_lightning.runs.dashboards import DashboardWriter, dashboard_writers, wandb_arguments
from erasure_lightning.runs.folder import Run
from erasure_lightning.runs.logger_session import closing
from erasure_lightning.runs.redaction import redact_paths


class Entry(NamedTuple):
    """One run of the dashboard.

    Args:
        folder: The folder of the run or the attack.
        name: Its display name.
        job: ``fit`` or ``attack``.
        concepts: Names of the erased concepts.
        config: Its config; the method among them.
        show: Logs figures, images and tables.
        curves: Logged values by step.
    """

    folder: Path
    name: str
    job: str
    concepts: list[str]
    config: dict[str, Any]
    show: Callable[[DashboardWriter], None]
    curves: list[tuple[int, dict[str, float]]]


def logged_entries(path: Path) -> Iterator[Entry]:
    """A run and the attacks on it, or one attack.

    Args:
        path: A run's folder, or an attack's.

    Raises:
        ErasureError: If it is neither, or a file in it cannot be read.
    """
    if (path / OUTCOME_FILE).is_file():
        yield _attack(path)
        return
    run = Run(path)
    if not run.edit.is_file():
        raise ErasureError(
            "erasure log needs the folder of a finished run or of an attack; found neither"
            f" {run.edit.name} nor {OUTCOME_FILE} in {path}."
        )
    description = read_edit_metadata(run.edit)
    concepts = [concept["name"] for concept in description["concepts"]]
    yield Entry(
        path,
        run.name,
        "fit",
        concepts,
        run_config(description),
        lambda writer: _show(writer, run),
        _curves(run),
    )
    yield from (_attack(file.parent) for file in sorted(run.attacks.glob(f"*/{OUTCOME_FILE}")))


def _attack(folder: Path) -> Entry:
    outcome = Outcome.load(folder / OUTCOME_FILE)
    known = {
        "method": outcome.method,
        "concepts": ", ".join(outcome.concepts),
        "attack": outcome.attack,
        "edit": outcome.edit,
        "arguments": redact_paths(outcome.arguments),
        "protocol": outcome.protocol.identity,
    }
    place = folder.resolve()
    name = (
        f"{Run(place.parent.parent).name}-{place.name}"
        if place.parent.name == "attacks"
        else place.name
    )
    return Entry(
        folder,
        name,
        "attack",
        outcome.concepts,
        known,
        lambda writer: show_attacks(writer, [outcome]),
        [],
    )


def _show(writer: DashboardWriter, run: Run) -> None:
    show_cost(writer, run)
    show_edit(writer, run)
    measured = Run(run.figures.parent)
    show_samples(writer, measured)
    if measured.metrics.is_file():
        show_figures(writer, Result.load(measured.metrics))


def _curves(run: Run) -> list[tuple[int, dict[str, float]]]:
    """Logged values by step.

    Raises:
        ErasureError: If a value is no number.
    """
    try:
        return [
            (
                int(row["step"]),
                {name: float(value) for name, value in row.items() if name != "step" and value},
            )
            for row in read_metrics(run.log)
        ]
    except (TypeError, ValueError) as error:
        raise ErasureError(
            f"{run.log} needs numbers, as `erasure fit` writes them; found another value"
            f" ({error}). Correct it, or move the file away."
        ) from error


def log_entry(
    entry: Entry, logger: str, *, project: str | None = None, offline: bool = False
) -> None:
    """Log a run or an attack; W&B's session of this process is ended.

    Args:
        entry: What `logged_entries` returned.
        logger: ``wandb`` or ``tensorboard``.
        project: W&B's project; by default ``WANDB_PROJECT``, else ``erasure``.
        offline: Whether W&B's run is written into the folder only.

    Raises:
        ErasureError: If the dashboard cannot be written to, or a file of the run is damaged.
    """
    own = _wandb_logger(entry, project, offline) if logger == "wandb" else _tensorboard(entry)
    with closing(entry.folder, lambda: [own]):
        for step, values in entry.curves:
            own.log_metrics(values, step)
        (writer,) = dashboard_writers([own], max((step for step, _ in entry.curves), default=0))
        writer.log_config(entry.config)
        entry.show(writer)
    if logger == "wandb":
        import wandb

        wandb.teardown()  # else the next entry's artifacts would be in the folder of this one


def _tensorboard(entry: Entry) -> Logger:
    return TensorBoardLogger(entry.folder, name="lightning_logs", default_hp_metric=False)


def _wandb_logger(entry: Entry, project: str | None, offline: bool) -> Logger:
    arguments = wandb_arguments(entry.config["method"], entry.concepts, entry.job, entry.name)
    if project := project or os.environ.get("WANDB_PROJECT"):
        arguments["project"] = project
    # Absolute: a session of W&B keeps the working folder in which its process began.
    return WandbLogger(save_dir=entry.folder.absolute(), offline=offline, **arguments)
