"""Jobs of a benchmark: one method on one concept with one seed, each in a run's folder."""

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from enum import StrEnum
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from erasure_lightning.benchmark.suite import AttackEntry, ConceptEntry, MethodEntry, Suite
from erasure_lightning.files.writing import EDIT_FILE
from erasure_lightning.runs.folder import CELLS_FOLDER, Run, slug

#: The suite in a benchmark's folder.
SUITE_FILE = "suite.yaml"

#: Output of a job's commands, and why the last one failed.
_LOG_FILE = "log.txt"
_FAILURE_FILE = "failure.txt"

_NO_PROGRESS_BAR = ("--trainer.enable_progress_bar", "false")


class Status(StrEnum):
    """How much of a job is finished."""

    FINISHED = "finished"
    FAILED = "failed"
    PARTIAL = "partial"
    MISSING = "missing"


@dataclass(frozen=True)
class Job:
    """One cell of a benchmark; its state is its folder alone.

    Args:
        suite: The benchmark.
        out: The benchmark's folder.
        method, concept, seed: The method that erases the concept with this seed of training.
    """

    suite: Suite
    out: Path
    method: MethodEntry
    concept: ConceptEntry
    seed: int

    def __str__(self) -> str:
        return f"{self.method.name} {self.concept.name} seed {self.seed}"

    @property
    def run(self) -> Run:
        """The folder of its run."""
        method = slug(self.method.name)
        concept = slug(self.concept.name)
        return Run(self.out / CELLS_FOLDER / method / concept / str(self.seed))

    @property
    def log(self) -> Path:
        """File with the output of its commands."""
        return self.run.root / _LOG_FILE

    @property
    def failure(self) -> Path:
        """File with the error of its last command; removed once one succeeds."""
        return self.run.root / _FAILURE_FILE

    @property
    def config(self) -> Path:
        """Copy of the method's config in the benchmark's folder."""
        return self.out / "configs" / f"{slug(self.method.name)}.yaml"

    def outcome(self, attack: AttackEntry) -> Path:
        """File with the outcome of an attack on its edit."""
        return self.run.attacks / slug(attack.name) / "attack.json"

    @property
    def status(self) -> Status:
        """How much of it is finished; it has failed too where its folder cannot be read."""
        try:
            if self.next_command() is None:
                return Status.FINISHED
            if self.failure.exists():
                return Status.FAILED
            return Status.PARTIAL if self.run.config.exists() else Status.MISSING
        except OSError:
            return Status.FAILED

    def next_command(self) -> list[str] | None:
        """Arguments of `erasure` for the next missing result; None if the job is finished."""
        run = self.run
        if not run.edit.exists():
            return ["fit", "--ckpt_path", str(run.root)] if run.last.exists() else self._fit()
        if not run.metrics.exists():
            options = ["--ckpt_path", str(run.root), "--run_dir", str(run.second_measurement)]
            return ["test", *options, *_NO_PROGRESS_BAR]
        missing = (attack for attack in self.suite.attacks if not self.outcome(attack).exists())
        return next((self.attack_command(attack) for attack in missing), None)

    def attack_command(self, attack: AttackEntry) -> list[str]:
        """Arguments of `erasure` for an attack on its edit."""
        command = ["attack", "--ckpt_path", str(self.run.root), "--attack", attack.attack]
        return [*command, *command_options(attack.options)]

    def link_parts(self) -> None:
        """Link the suite's fitted cells that are parts of the method's config.

        They are cells of a method with a part's name, config and options, of the same concept and
        seed; `erasure fit` does not fit them again.
        """
        common = self._fit_options().keys()
        for content in self.method.config.get("parts", ()):
            part = MethodEntry(**content)
            is_same = not (self.method.options or part.options.keys() & common)
            cell = Job(self.suite, self.out, part, self.concept, self.seed).run
            folder = self.run.root / "parts" / part.name
            if is_same and part in self.suite.methods and cell.edit.exists():
                folder.parent.mkdir(parents=True, exist_ok=True)
                with suppress(FileExistsError):
                    folder.symlink_to(os.path.relpath(cell.root, folder.parent))

    def _fit_options(self) -> dict[str, Any]:
        """Options of the fits of all methods."""
        defaults = {
            "model.backbone": self.suite.backbone,
            "model.concepts": [asdict(concept) for concept in self.concept.erase],
            "model.seed": self.seed,
            # One folder for all jobs: every method is compared with the same original images.
            "data.originals": str(self.out / "originals"),
            "data.neighbours": list(self.concept.neighbours),
        }
        return defaults | self.suite.options

    def _fit(self) -> list[str]:
        options = command_options(self._fit_options() | self.method.options)
        run_dir = ["--run_dir", str(self.run.root)]
        return ["fit", "--config", str(self.config), *options, *run_dir, *_NO_PROGRESS_BAR]


def command_options(options: dict[str, Any]) -> list[str]:
    """Options as arguments of a command line, their values in JSON, which is YAML too."""
    arguments = []
    for name, value in options.items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        arguments += [f"--{name}", text]
    return arguments


def list_jobs(suite: Suite, out: Path) -> list[Job]:
    """All jobs of a suite, by seed, then method, so that a stopped benchmark has whole methods."""
    cells = product(suite.seeds, suite.methods, suite.concepts)
    return [Job(suite, out, method, concept, seed) for seed, method, concept in cells]


def has_edits(out: Path) -> bool:
    """Whether a benchmark's folder holds an edit, or a checkpoint on the way to one."""
    matches = ((out / CELLS_FOLDER).glob(f"*/*/*/{name}") for name in (EDIT_FILE, "checkpoints"))
    return any(any(paths) for paths in matches)


def initial_files(suite: Suite, out: Path) -> Iterator[tuple[Path, str]]:
    """Files of a benchmark's folder before its first job: the suite and its configs."""
    yield out / SUITE_FILE, yaml.safe_dump(suite.content(), sort_keys=False, allow_unicode=True)
    for method in suite.methods:
        text = yaml.safe_dump(method.config, sort_keys=False, allow_unicode=True)
        yield out / "configs" / f"{slug(method.name)}.yaml", text
