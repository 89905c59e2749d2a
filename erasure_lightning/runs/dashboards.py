"""Boards: where people look at runs. Weights & Biases and TensorBoard, behind the few things that
are shown on one.
"""

import os
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

from erasure_lightning.concepts.concept import in_short
from erasure_lightning.distributed.lightning_internals import open_wandb_run

#: Where runs go on W&B unless told otherwise.
PROJECT = "erasure"

#: Keeps what W&B would collect by itself off its records: host, user, folders, command line,
#: packages, console, code.
PRIVATE: dict[str, Any] = {
    "console": "off", "disable_code": True, "disable_git": True, "disable_job_creation": True, "host": "",
    "program": "", "quiet": True, "symlink": False, "username": "", "x_disable_machine_info": True,
    "x_disable_meta": True, "x_save_requirements": False,
}  # fmt: skip

#: The longest tag that W&B takes, and the longest group.
_TAG, _GROUP = 64, 128


def wandb_arguments(method: str, concepts: Sequence[str], job: str, name: str) -> dict[str, Any]:
    """What `WandbLogger` needs so that a team's runs stand together: by concept, then by what they
    do.

    Args:
        method: Class name of the method.
        concepts: What is erased; the runs of equal concepts form a group.
        job: What the run does: ``fit``, ``test``, ``attack``, ...
        name: What the run is called.
    """
    tags = [method, *concepts[:8]]
    return {
        "project": PROJECT,
        "group": in_short(concepts)[:_GROUP],
        "job_type": job,
        "name": name,
        "tags": [tag[:_TAG] for tag in tags],
        "settings": PRIVATE,
    }


class Board(ABC):
    """Shows what a run made."""

    @abstractmethod
    def facts(self, values: Mapping[str, Any]) -> None:
        """What the run is: method, concepts, arguments, ..."""

    @abstractmethod
    def figures(self, values: Mapping[str, float]) -> None:
        """What the run came to; runs are compared by these."""

    @abstractmethod
    def picture(self, name: str, picture: Image) -> None:
        """One picture."""

    @abstractmethod
    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Rows of texts, numbers and pictures."""

    @abstractmethod
    def curve(self, name: str, points: Sequence[tuple[float, float]], over: str) -> None:
        """Points ``(x, y)``, ``over`` what."""

    @abstractmethod
    def edit(self, name: str, file: Path, metadata: Mapping[str, Any]) -> None:
        """The edit itself, with what it was made from."""


class WandbBoard(Board):
    """A run on Weights & Biases.

    Args:
        logger: Its logger.
        step: At which what is shown appears.
    """

    def __init__(self, logger: WandbLogger, step: int) -> None:
        self.logger = logger
        self.step = step

    def facts(self, values: Mapping[str, Any]) -> None:
        """Into the run's config."""
        self.logger.log_hyperparams(dict(values))

    def figures(self, values: Mapping[str, float]) -> None:
        """Into the run's summary."""
        self.logger.experiment.summary.update(dict(values))

    def picture(self, name: str, picture: Image) -> None:
        """An image panel."""
        self.logger.log_image(name, [picture], step=self.step)

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """A table, which W&B joins over runs."""
        import wandb

        data = [
            [wandb.Image(cell) if isinstance(cell, Image) else cell for cell in row] for row in rows
        ]
        self.logger.log_table(name, columns=list(columns), data=data, step=self.step)

    def curve(self, name: str, points: Sequence[tuple[float, float]], over: str) -> None:
        """A line with an axis of its own."""
        import wandb

        y = name.rpartition("/")[2]
        line = wandb.plot.line(
            wandb.Table(columns=[over, y], data=[list(p) for p in points]), over, y, title=name
        )
        self.logger.experiment.log({name: line})

    def edit(self, name: str, file: Path, metadata: Mapping[str, Any]) -> None:
        """An artifact of type ``edit``; its content is copied, so that the file need not stay."""
        import wandb

        artifact = wandb.Artifact(name, type="edit", metadata=dict(metadata))
        artifact.add_file(str(file), name="edit.safetensors")
        self.logger.experiment.log_artifact(artifact)


class TensorBoard(Board):
    """A run on TensorBoard.

    Args:
        logger: Its logger.
        step: At which what is shown appears.
    """

    def __init__(self, logger: TensorBoardLogger, step: int) -> None:
        self.writer: Any = logger.experiment
        self.step = step

    def facts(self, values: Mapping[str, Any]) -> None:
        """A text."""
        self.table("run", ["", ""], list(values.items()))

    def figures(self, values: Mapping[str, float]) -> None:
        """Scalars."""
        for name, value in values.items():
            self.writer.add_scalar(f"summary/{name}", value, self.step)

    def picture(self, name: str, picture: Image) -> None:
        """An image."""
        self.writer.add_image(
            name, numpy.asarray(picture.convert("RGB")), self.step, dataformats="HWC"
        )

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """A text in Markdown; pictures, which it cannot hold, beside it under the row's number."""
        lines = [["row", *columns], ["---"] * (len(columns) + 1)]
        for number, row in enumerate(rows):
            lines.append(
                [str(number), *("" if isinstance(cell, Image) else _cell(cell) for cell in row)]
            )
            for column, cell in zip(columns, row, strict=True):
                if isinstance(cell, Image):
                    self.picture(f"{name}/{number:03}-{column}", cell)
        self.writer.add_text(
            name, "\n".join(f"| {' | '.join(line)} |" for line in lines), self.step
        )

    def curve(self, name: str, points: Sequence[tuple[float, float]], over: str) -> None:
        """Scalars over whole numbers."""
        for x, y in points:
            self.writer.add_scalar(f"{name} over {over}", y, round(x))

    def edit(self, name: str, file: Path, metadata: Mapping[str, Any]) -> None:
        """What it says of itself; TensorBoard keeps no files."""
        self.table(f"edit/{name}", ["", ""], list(metadata.items()))


def _cell(value: Any) -> str:
    """A value in a Markdown table."""
    return " ".join(str(value).replace("|", "\\|").split())


def boards(loggers: Sequence[Logger], step: int) -> list[Board]:
    """A board for each logger that is one."""
    kinds: dict[type[Logger], type[Any]] = {WandbLogger: WandbBoard, TensorBoardLogger: TensorBoard}
    return [
        board(one, step)
        for one in loggers
        for kind, board in kinds.items()
        if isinstance(one, kind)
    ]


def close(loggers: Sequence[Logger], failed: bool = False) -> list[Path]:
    """End what loggers hold open, and take out of their folders what names this machine.

    A process may hold one W&B run at a time, and the next would write into it. Its notes about
    itself (``logs``) tell the run's absolute path; the names of TensorBoard's files the host.

    Args:
        loggers: Those of a run, on rank 0.
        failed: Whether the run did.

    Returns:
        Folders of W&B runs that wait to be sent.
    """
    waiting = []
    for logger in loggers:
        if (
            isinstance(logger, WandbLogger)
            and (run := open_wandb_run(logger)) is not None
            and hasattr(run, "settings")
        ):
            folder = Path(os.path.relpath(Path(run.dir).parent))
            run.finish(exit_code=int(failed))
            rmtree(folder / "logs", ignore_errors=True)
            waiting += [folder] if run.offline else []
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.close()
            for file in Path(logger.log_dir).glob(f"events.*.{gethostname()}.*"):
                with suppress(OSError):
                    file.rename(file.with_name(file.name.replace(f".{gethostname()}.", ".")))
    return waiting
