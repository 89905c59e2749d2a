"""The folder of a run: its files, and checks before it is written to."""

import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from erasure_lightning.concepts.concept import shortened_names
from erasure_lightning.errors import ErasureError
from erasure_lightning.files.locks import RUNNING_FILE
from erasure_lightning.files.words import shell_word
from erasure_lightning.files.writing import EDIT_FILE, is_temporary

#: Default folder of runs.
RUNS_FOLDER = Path("runs")

#: The config in a run's folder.
CONFIG_FILE = "config.yaml"

#: Folder of a benchmark's runs, ``cells/METHOD/CONCEPT/SEED``.
CELLS_FOLDER = "cells"

#: Results of a measurement, in the order in which they are moved; the figures last.
_MEASURED = ("samples", "grid.png", "metrics.json")


@dataclass(frozen=True)
class Run:
    """A run's folder.

    Args:
        root: The folder, which may not exist yet.
        in_python: Whether `fit` in Python writes it, whose arguments are in no config.
    """

    root: Path
    in_python: bool = False

    @property
    def name(self) -> str:
        """The folder's name; of a benchmark's cell those of method, concept and seed."""
        place = self.root.resolve()
        is_cell = place.parts[-4:-3] == (CELLS_FOLDER,)
        return "-".join(place.parts[-3:]) if is_cell else place.name

    @property
    def edit(self) -> Path:
        """The edit, which exists once the run has finished."""
        return self.root / EDIT_FILE

    @property
    def config(self) -> Path:
        """The whole config of the run."""
        return self.root / CONFIG_FILE

    @property
    def last(self) -> Path:
        """The checkpoint that an interrupted run resumes from."""
        return self.root / "checkpoints" / "last.ckpt"

    @property
    def next(self) -> Path:
        """The checkpoint that becomes the last one once its step is logged."""
        return self.last.with_name("next.ckpt")

    @property
    def grid(self) -> Path:
        """Images before and after the edit, as a grid."""
        return self.root / "grid.png"

    @property
    def metrics(self) -> Path:
        """Figures measured by the run itself."""
        return self.root / "metrics.json"

    @property
    def figures(self) -> Path:
        """Figures of the edit, by `fit` or else by the newest `erasure test`."""
        tests = sorted(self.root.glob("test*/metrics.json"), key=lambda file: file.stat().st_mtime)
        return tests[-1] if tests and not self.metrics.exists() else self.metrics

    @property
    def command(self) -> str:
        """The command that continues this run, in Python a call; empty if it is complete."""
        is_measured = self.edit.exists() and self.figures.exists()
        if is_measured or not (self.edit.exists() or self.last.exists()):
            return ""
        if self.in_python:
            where = repr(str(self.root))
            measure = f"evaluate({where}, pipeline)"
            return measure if self.edit.exists() else f"fit(..., run_dir={where}, resume=True)"
        name = "test" if self.edit.exists() else "fit"
        return f"erasure {name} --ckpt_path {shell_word(self.root)}"

    @property
    def log(self) -> Path:
        """Metrics of the training, a row per logged step."""
        return self.root / "metrics.csv"

    @property
    def cost(self) -> Path:
        """Cost of the run."""
        return self.root / "cost.json"

    @property
    def samples(self) -> Path:
        """Folder of the grid's single images."""
        return self.root / "samples"

    @property
    def attacks(self) -> Path:
        """Folder of the attacks on the edit, one subfolder each."""
        return self.root / "attacks"

    @property
    def second_measurement(self) -> Path:
        """Folder in which an edit is measured that was not measured by its fit."""
        return self.root / "test"

    def finish_measurement(self) -> None:
        """Move results of a finished second measurement to where the first would be."""
        folder = self.second_measurement
        if (folder / _MEASURED[-1]).exists():
            shutil.rmtree(self.samples, ignore_errors=True)
            for name in _MEASURED:
                if (folder / name).exists():
                    os.replace(folder / name, self.root / name)
        self.discard_measurement()

    def discard_measurement(self) -> None:
        """Remove what is left of a killed second measurement."""
        shutil.rmtree(self.second_measurement, ignore_errors=True)

    def check_unused(self, option: str = "--run_dir") -> None:
        """Raises unless a new run may start here.

        Args:
            option: Which names the folder.

        Raises:
            ErasureError: If a finished run, or the checkpoint of an unfinished one, would be
                overwritten.
        """
        if self.edit.exists():
            measure = f"Measure it with `{self.command}`, or choose" if self.command else "Choose"
            raise ErasureError(
                f"{self.root} holds a finished run ({self.edit.name}), which is never overwritten. "
                f"{measure} another folder with {option}, or delete this one."
            )
        if self.last.exists():
            raise ErasureError(
                f"{self.root} holds an unfinished run. Continue it with `{self.command}`, "
                f"or start over elsewhere with {option}, or delete it."
            )

    def check_resumable(self) -> None:
        """Raises if the run has finished.

        Raises:
            ErasureError: If there is nothing to resume.
        """
        if self.edit.exists():
            call = self.command if self.in_python else ""
            measure = call or f"erasure test --ckpt_path {shell_word(self.root)}"
            raise ErasureError(
                f"{self.root} holds a finished run ({self.edit.name}): nothing is left to resume."
                f" Measure it with `{measure}`, or start"
                " another with --run_dir."
            )


def default_run(method: str, concepts: Sequence[str]) -> Run:
    """The default run, ``runs/<method>-<concepts>``; of many concepts the first three."""
    return Run(RUNS_FOLDER / slug(f"{method}-{shortened_names(concepts)}"))


def slug(text: str) -> str:
    """A file name for a text: at most 80 lower-case letters, digits and hyphens."""
    return re.sub(r"[^\w]+", "-", text.lower()).strip("-")[:80].rstrip("-")


def run_of(path: Path) -> Run:
    """The run of a checkpoint, an edit or a folder."""
    if path.is_dir():
        return Run(path)
    return Run(path.parent.parent if path.parent.name == "checkpoints" else path.parent)


def require_unused(folder: Path, option: str = "--run_dir") -> None:
    """Check that a folder has no results.

    Args:
        folder: The folder.
        option: Which names it.

    Raises:
        ErasureError: If it has some, which are never overwritten, or is a file.
    """
    if folder.is_file():
        raise ErasureError(f"{option} needs to be a folder; found the file {folder}.")
    if unused_folder(folder) != folder:
        raise ErasureError(
            f"{folder} is not empty, and its files are not overwritten. Choose another {option}."
        )


def new_folder(chosen: Path | None, default: Path) -> Path:
    """The folder of new results: the chosen one, which must have none, else an unused default one.

    Raises:
        ErasureError: If the chosen one has results, or is a file.
    """
    if chosen is None:
        return unused_folder(default)
    require_unused(chosen)
    return chosen


def unused_folder(folder: Path) -> Path:
    """The first of ``folder``, ``folder-2``, ... that has no results."""
    number = 1
    candidate = folder
    while candidate.is_file() or (candidate.exists() and any(map(_is_result, candidate.iterdir()))):
        number += 1
        candidate = folder.with_name(f"{folder.name}-{number}")
    return candidate


def _is_result(file: Path) -> bool:
    """Whether a file is more than a config, a lock, or being written by a faster rank."""
    return file.name not in (CONFIG_FILE, RUNNING_FILE) and not is_temporary(file)
