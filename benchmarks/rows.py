"""What the benchmarks' tables share: one `erasure fit` a row, and its figures."""

import json
import os
import subprocess
import sys
from pathlib import Path

COLUMNS = {
    "own": "efficacy",
    "domain": "generality",
    "retain": "specificity",
    "neighbours": "neighbours",
}


def fitted(folder: Path, given: list[str], threads: int | None = None) -> tuple[dict, dict]:
    """A run's estimates and cost; it is fitted first unless the folder is finished.

    Args:
        folder: The run's.
        given: Arguments of `erasure fit`.
        threads: Of torch; all cores by default.
    """
    if not (folder / "metrics.json").exists():
        paths = os.pathsep.join(
            [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
        )  # methods of benchmarks
        environment = (
            os.environ
            | {"PYTHONPATH": paths}
            | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
        )
        command = [
            sys.executable,
            "-m",
            "erasure_lightning",
            "fit",
            *given,
            "--run_dir",
            str(folder),
        ]
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment, text=True
        )
        if done.returncode:
            raise SystemExit(f"{' '.join(command)}\n{done.stdout}")
    return tuple(json.loads((folder / name).read_text()) for name in ("metrics.json", "cost.json"))


def interval(whens: dict[str, dict[str, float]] | None) -> str:
    """Before and after, the latter with its 95 % interval."""
    if whens is None:
        return "-"
    before = f"{whens['before']['mean']:.2f} → " if "before" in whens else ""
    return before + "{mean:.3f} [{low:.2f}, {high:.2f}]".format(**whens["after"])


def mean(whens: dict[str, dict[str, float]] | None) -> float | None:
    """The figure after the edit alone."""
    return whens["after"]["mean"] if whens else None


def line(cells: list[str]) -> str:
    """A row of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def head(columns: list[str]) -> str:
    """The head of a Markdown table."""
    return f"{line(columns)}\n|{' --- |' * len(columns)}"
