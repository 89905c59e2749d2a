"""The folder of a run: what lies where, and when it may be written to."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from erasure_lightning.concepts.concept import in_short
from erasure_lightning.errors import ErasureError
from erasure_lightning.files.locks import RUNNING_FILE
from erasure_lightning.files.writing import EDIT_FILE, is_temporary

#: Where runs go that were not told where.
RUNS = Path("runs")

CONFIG_FILE = "config.yaml"


@dataclass(frozen=True)
class Run:
    """A run's folder.

    Args:
        root: The folder; need not exist.
    """

    root: Path

    @property
    def edit(self) -> Path:
        """The result; there once the run has finished."""
        return self.root / EDIT_FILE

    @property
    def config(self) -> Path:
        """Everything the run was asked to do."""
        return self.root / CONFIG_FILE

    @property
    def last(self) -> Path:
        """What an interrupted run goes on from."""
        return self.root / "checkpoints" / "last.ckpt"

    @property
    def next(self) -> Path:
        """What becomes the last checkpoint once its step has been logged."""
        return self.last.with_name("next.ckpt")

    @property
    def grid(self) -> Path:
        """Pictures before and after."""
        return self.root / "grid.png"

    @property
    def metrics(self) -> Path:
        """What was measured."""
        return self.root / "metrics.json"

    @property
    def figures(self) -> Path:
        """What was measured of the edit, by `fit` or else by the newest `erasure test`."""
        apart = sorted(self.root.glob("test*/metrics.json"), key=lambda file: file.stat().st_mtime)
        return apart[-1] if apart and not self.metrics.exists() else self.metrics

    @property
    def command(self) -> str:
        """What goes on from the edit or the checkpoint that lies here; empty where nothing is left
        to do.
        """
        if self.edit.exists():
            return "" if self.figures.exists() else f"erasure test --ckpt_path {self.root}"
        return f"erasure fit --ckpt_path {self.root}" if self.last.exists() else ""

    @property
    def log(self) -> Path:
        """What was logged while training, a row a step."""
        return self.root / "metrics.csv"

    @property
    def cost(self) -> Path:
        """What it took."""
        return self.root / "cost.json"

    @property
    def samples(self) -> Path:
        """The grid's pictures one by one."""
        return self.root / "samples"

    @property
    def attacks(self) -> Path:
        """A folder for each attack that was tried on the edit."""
        return self.root / "attacks"

    def check_unused(self) -> None:
        """Raise unless a new run may start here.

        Raises:
            ErasureError: If a finished run, or the checkpoint of an unfinished one, would be
                overwritten.
        """
        if self.edit.exists():
            measure = f"Measure it with `{self.command}`, or choose" if self.command else "Choose"
            raise ErasureError(
                f"{self.root} holds a finished run ({self.edit.name}), which is never overwritten. "
                f"{measure} another folder with --run_dir, or delete this one."
            )
        if self.last.exists():
            raise ErasureError(
                f"{self.root} holds an unfinished run. Continue it with `{self.command}`, "
                "or start over elsewhere with --run_dir, or delete it."
            )

    def check_resumable(self) -> None:
        """Raise if the run has finished already.

        Raises:
            ErasureError: If so.
        """
        if self.edit.exists():
            raise ErasureError(
                f"{self.root} holds a finished run ({self.edit.name}): nothing is left to resume."
                f" Measure it with `erasure test --ckpt_path {self.root}`, or start another with"
                " --run_dir."
            )


def default_run(method: str, concepts: Sequence[str]) -> Run:
    """Where a run goes by default: ``runs/<method>-<concepts>``, of many concepts the first."""
    return Run(RUNS / slug(f"{method}-{in_short(concepts)}"))


def slug(text: str) -> str:
    """Words as a file name: lower case, at most 80 characters, nothing but letters, digits and
    hyphens.
    """
    return re.sub(r"[^\w]+", "-", text.lower()).strip("-")[:80].rstrip("-")


def run_of(path: Path) -> Run:
    """The run a checkpoint, an edit or the folder itself belongs to."""
    if path.is_dir():
        return Run(path)
    return Run(path.parent.parent if path.parent.name == "checkpoints" else path.parent)


def unused(folder: Path) -> Path:
    """The folder if it holds no more than a config, else the first such of ``folder-2``,
    ``folder-3``, ...
    """
    number, found = 1, folder
    while found.exists() and any(map(_counts, found.iterdir())):
        number += 1
        found = folder.with_name(f"{folder.name}-{number}")
    return found


def _counts(file: Path) -> bool:
    """Whether it makes a folder a used one; what a faster rank is just writing does not."""
    return file.name not in (CONFIG_FILE, RUNNING_FILE) and not is_temporary(file)
