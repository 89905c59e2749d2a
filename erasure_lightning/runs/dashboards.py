"""Writers for dashboards of runs: Weights & Biases and TensorBoard behind one interface."""

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from shutil import rmtree
from socket import gethostname
from typing import Any

import numpy
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from PIL.Image import Image

from erasure_lightning.concepts.concept import shortened_names
from erasure_lightning.distributed.lightning_internals import open_wandb_run

#: Default project on W&B.
_PROJECT = "erasure"

#: Settings that stop W&B from recording host, user, folders, command line, packages, console and
#: code.
PRIVATE_SETTINGS: dict[str, Any] = {
    "console": "off",
    "disable_code": True,
    "disable_git": True,
    "disable_job_creation": True,
    "host": "",
    "program": "",
    "quiet": True,
    "symlink": False,
    "username": "",
    "x_disable_machine_info": True,
    "x_disable_meta": True,
    "x_save_requirements": False,
}

#: Longest tag and longest group name of W&B, in characters.
_MAX_TAG = 64
_MAX_GROUP = 128


def wandb_arguments(method: str, concepts: Sequence[str], job: str, name: str) -> dict[str, Any]:
    """Arguments of `WandbLogger` that group runs by concepts and job.

    Args:
        method: Class name of the method.
        concepts: Names of the erased concepts; runs of equal concepts form a group.
        job: Kind of run: ``fit``, ``test``, ``attack``, ...
        name: Name of the run.
    """
    tags = [method, *concepts[:8]]
    return {
        "project": _PROJECT,
        "group": shortened_names(concepts)[:_MAX_GROUP],
        "job_type": job,
        "name": name,
        "tags": [tag[:_MAX_TAG] for tag in tags],
        "settings": PRIVATE_SETTINGS,
    }


class DashboardWriter(ABC):
    """Writes a run's config, results and edit to a dashboard."""

    @abstractmethod
    def log_config(self, values: Mapping[str, Any]) -> None:
        """Logs the run's config: method, concepts, arguments, ..."""

    @abstractmethod
    def log_summary(self, values: Mapping[str, float]) -> None:
        """Logs the figures that runs are compared by."""

    @abstractmethod
    def log_image(self, name: str, image: Image) -> None:
        """Logs an image."""

    @abstractmethod
    def log_table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Logs a table of texts, numbers and images.

        Args:
            name: Name of the table.
            columns: Headings of the columns.
            rows: Cells of each row, in the order of the columns.
        """

    @abstractmethod
    def log_curve(self, name: str, points: Sequence[tuple[float, float]], over: str) -> None:
        """Logs a curve.

        Args:
            name: Name of the curve.
            points: Its points ``(x, y)``.
            over: Name of ``x``.
        """

    @abstractmethod
    def log_edit(self, name: str, file: Path, metadata: Mapping[str, Any]) -> None:
        """Logs the edit file with its metadata.

        Args:
            name: Name of the edit.
            file: The edit file.
            metadata: Its metadata.
        """


class WandbWriter(DashboardWriter):
    """A run on Weights & Biases.

    Args:
        logger: The run's logger.
        step: Step of images and tables.
    """

    def __init__(self, logger: WandbLogger, step: int) -> None:
        self.logger = logger
        self.step = step

    def log_config(self, values: Mapping[str, Any]) -> None:
        """Logs to the run's config."""
        self.logger.log_hyperparams(dict(values))

    def log_summary(self, values: Mapping[str, float]) -> None:
        """Logs to the run's summary."""
        self.logger.experiment.summary.update(dict(values))

    def log_image(self, name: str, image: Image) -> None:
        """Logs an image panel."""
        self.logger.log_image(name, [image], step=self.step)

    def log_table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Logs a table, which W&B joins over runs."""
        import wandb

        data = [
            [wandb.Image(cell) if isinstance(cell, Image) else cell for cell in row] for row in rows
        ]
        self.logger.log_table(name, columns=list(columns), data=data, step=self.step)

    def log_curve(self, name: str, points: Sequence[tuple[float, float]], over: str) -> None:
        """Logs a line plot with its own x axis."""
        import wandb

        y = name.rpartition("/")[2]
        data = wandb.Table(columns=[over, y], data=[list(point) for point in points])
        line = wandb.plot.line(data, over, y, title=name)
        self.logger.experiment.log({name: line})

    def log_edit(self, name: str, file: Path, metadata: Mapping[str, Any]) -> None:
        """Logs an artifact of type ``edit``, with a copy of the file."""
        import wandb

        plain = re.sub(r"[^\w.-]+", "-", name, flags=re.ASCII).strip("-")  # W&B refuses others
        artifact = wandb.Artifact(plain or "edit", type="edit", metadata=dict(metadata))
        artifact.add_file(str(file), name="edit.safetensors")
        self.logger.experiment.log_artifact(artifact)


class TensorBoardWriter(DashboardWriter):
    """A run on TensorBoard.

    Args:
        logger: The run's logger.
        step: Step of images and tables.
    """

    def __init__(self, logger: TensorBoardLogger, step: int) -> None:
        self.writer: Any = logger.experiment
        self.step = step

    def log_config(self, values: Mapping[str, Any]) -> None:
        """Logs a text for each value: of two texts of one name and step the later one is shown."""
        for name, value in values.items():
            self.writer.add_text(f"run/{name}", str(value), self.step)

    def log_summary(self, values: Mapping[str, float]) -> None:
        """Logs scalars."""
        for name, value in values.items():
            self.writer.add_scalar(f"summary/{name}", value, self.step)

    def log_image(self, name: str, image: Image) -> None:
        """Logs an image."""
        pixels = numpy.asarray(image.convert("RGB"))
        self.writer.add_image(name, pixels, self.step, dataformats="HWC")

    def log_table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Logs a Markdown table, and its images separately under the number of their row."""
        lines = [["row", *columns], ["---"] * (len(columns) + 1)]
        for number, row in enumerate(rows):
            texts = ["" if isinstance(cell, Image) else _cell(cell) for cell in row]
            lines.append([str(number), *texts])
            for column, cell in zip(columns, row, strict=True):
                if isinstance(cell, Image):
                    self.log_image(f"{name}/{number:03}-{column}", cell)
        text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        self.writer.add_text(name, text, self.step)

    def log_curve(self, name: str, points: Sequence[tuple[float, float]], over: str) -> None:
        """Logs scalars over whole numbers."""
        for x, y in points:
            self.writer.add_scalar(f"{name} over {over}", y, round(x))

    def log_edit(self, name: str, file: Path, metadata: Mapping[str, Any]) -> None:
        """Logs the metadata; TensorBoard stores no files."""
        self.log_table(f"edit/{name}", ["", ""], list(metadata.items()))


def _cell(value: Any) -> str:
    """A value as a cell of a Markdown table."""
    return " ".join(str(value).replace("|", "\\|").split())


def dashboard_writers(loggers: Sequence[Logger], step: int) -> list[DashboardWriter]:
    """A writer for each logger that has a dashboard."""
    writers: dict[type[Logger], type[Any]] = {
        WandbLogger: WandbWriter,
        TensorBoardLogger: TensorBoardWriter,
    }
    return [
        writer(logger, step)
        for logger in loggers
        for kind, writer in writers.items()
        if isinstance(logger, kind)
    ]


def close_loggers(loggers: Sequence[Logger], failed: bool = False) -> list[Path]:
    """Closes loggers and removes this machine's names from their folders.

    A process has one W&B run at a time, and the next would write to it. Its ``logs`` hold absolute
    paths; the names of TensorBoard's files hold the host.

    Args:
        loggers: Loggers of a run, on rank 0.
        failed: Whether the run failed.

    Returns:
        Folders of offline W&B runs, to be uploaded.
    """
    offline = []
    for logger in loggers:
        run = open_wandb_run(logger) if isinstance(logger, WandbLogger) else None
        if run is not None and hasattr(run, "settings"):
            folder = Path(os.path.relpath(Path(run.dir).parent))
            run.finish(exit_code=int(failed))
            rmtree(folder / "logs", ignore_errors=True)
            offline += [folder] if run.offline else []
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.close()
            for file in Path(logger.log_dir).glob(f"events.*.{gethostname()}.*"):
                with suppress(OSError):
                    file.rename(file.with_name(file.name.replace(f".{gethostname()}.", ".")))
    return offline
