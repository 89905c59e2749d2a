"""`Job`: one method on one concept with one seed, a run's folder that knows what is still missing
from it.
"""

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from erasure_lightning.benchmark.suite import AttackEntry, ConceptEntry, MethodEntry, Suite
from erasure_lightning.files.writing import EDIT_FILE
from erasure_lightning.runs.folder import Run, slug

#: What a cell keeps beside its run: what its commands said, and why the last one failed.
LOG_FILE, FAILURE_FILE = "log.txt", "failure.txt"

#: Where a cell's edit is measured again whose measurement was killed, and what comes out of it, the
#: figures last.
_AGAIN, _MEASURED = "test", ("samples", "grid.png", "metrics.json")


class Status(StrEnum):
    """How far a cell is."""

    FINISHED = "finished"
    FAILED = "failed"
    PARTIAL = "partial"
    MISSING = "missing"


@dataclass(frozen=True)
class Job:
    """One of a benchmark's cells.

    Args:
        suite: The benchmark.
        out: Its folder.
        method, concept, seed: The cell's place in it.
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
        return Run(
            self.out / "cells" / slug(self.method.name) / slug(self.concept.name) / str(self.seed)
        )

    @property
    def log(self) -> Path:
        """What its commands said."""
        return self.run.root / LOG_FILE

    @property
    def failure(self) -> Path:
        """Why its last command failed, there until one succeeds."""
        return self.run.root / FAILURE_FILE

    def outcome(self, attack: AttackEntry) -> Path:
        """What an attack on its edit found."""
        return self.run.attacks / slug(attack.name) / "attack.json"

    @property
    def status(self) -> Status:
        """How far it is."""
        if self.command() is None:
            return Status.FINISHED
        if self.failure.exists():
            return Status.FAILED
        return Status.PARTIAL if self.run.config.exists() else Status.MISSING

    def command(self) -> list[str] | None:
        """Arguments of `erasure` for what is missing next; None where nothing is."""
        run = self.run
        if not run.edit.exists():
            return ["fit", "--ckpt_path", str(run.root)] if run.last.exists() else self._fit()
        if not run.metrics.exists():
            return [
                "test",
                "--ckpt_path",
                str(run.root),
                "--run_dir",
                str(run.root / _AGAIN),
                *_QUIET,
            ]
        missing = (attack for attack in self.suite.attacks if not self.outcome(attack).exists())
        return next((self._attack(attack) for attack in missing), None)

    def _fit(self) -> list[str]:
        given = {
            "model.backbone": self.suite.backbone,
            "model.concepts": [asdict(concept) for concept in self.concept.erase],
            "model.seed": self.seed,
            "data.originals": str(
                self.out / "originals"
            ),  # every method is measured against the same pictures
            "data.neighbours": list(self.concept.neighbours),
        }
        chosen = given | self.suite.options | self.method.options
        return [
            "fit",
            "--config",
            str(self.config),
            *arguments(chosen),
            "--run_dir",
            str(self.run.root),
            *_QUIET,
        ]

    def _attack(self, attack: AttackEntry) -> list[str]:
        named = ["attack", "--ckpt_path", str(self.run.root), "--attack", attack.attack]
        return [*named, *arguments(attack.options)]

    @property
    def config(self) -> Path:
        """The method's config as the benchmark keeps it."""
        return self.out / "configs" / f"{slug(self.method.name)}.yaml"

    def clear(self) -> None:
        """Remove what a killed measurement left."""
        shutil.rmtree(self.run.root / _AGAIN, ignore_errors=True)

    def settle(self) -> None:
        """Put what a second measurement found where the first would have."""
        again = self.run.root / _AGAIN
        if (again / _MEASURED[-1]).exists():
            shutil.rmtree(self.run.samples, ignore_errors=True)
            for name in _MEASURED:
                if (again / name).exists():
                    os.replace(again / name, self.run.root / name)
        self.clear()


_QUIET = ("--trainer.enable_progress_bar", "false")


def arguments(options: dict[str, Any]) -> list[str]:
    """Options as the command line takes them, values in JSON, which is YAML too."""
    return [
        word
        for name, value in options.items()
        for word in (
            f"--{name}",
            value if isinstance(value, str) else json.dumps(value, ensure_ascii=False),
        )
    ]


def cells(suite: Suite, out: Path) -> list[Job]:
    """Every cell: seed by seed, method by method, so that a benchmark cut short has whole methods."""
    places = product(suite.seeds, suite.methods, suite.concepts)
    return [Job(suite, out, method, concept, seed) for seed, method, concept in places]


def begun(out: Path) -> bool:
    """Whether a benchmark's folder holds an edit, or a checkpoint on the way to one."""
    folders = ((out / "cells").glob(f"*/*/*/{name}") for name in (EDIT_FILE, "checkpoints"))
    return any(any(found) for found in folders)


def files(suite: Suite, out: Path) -> Iterator[tuple[Path, str]]:
    """What a benchmark's folder holds before the first cell: the suite, by which it is known, and
    the configs.
    """
    yield out / "suite.yaml", yaml.safe_dump(suite.content(), sort_keys=False, allow_unicode=True)
    for method in suite.methods:
        text = yaml.safe_dump(method.config, sort_keys=False, allow_unicode=True)
        yield out / "configs" / f"{slug(method.name)}.yaml", text
