"""Shared by the benchmarks: runs one `erasure fit` for each row and formats its figures."""

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


def fitted(folder: Path, arguments: list[str], threads: int | None = None) -> tuple[dict, dict]:
    """A run's estimates and cost; it is fitted first unless its folder is finished.

    Args:
        folder: The run's folder.
        arguments: Arguments of `erasure fit`.
        threads: Threads of torch; all cores by default.
    """
    if not (folder / "metrics.json").exists():
        # This folder, since some methods are defined in benchmarks.
        paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
        if threads:
            environment["OMP_NUM_THREADS"] = str(threads)
        command = [sys.executable, "-m", "erasure_lightning", "fit", *arguments]
        command += ["--run_dir", str(folder)]
        result = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment, text=True
        )
        if result.returncode:
            raise SystemExit(f"{' '.join(command)}\n{result.stdout}")
    return tuple(json.loads((folder / name).read_text()) for name in ("metrics.json", "cost.json"))


def interval(estimates: dict[str, dict[str, float]] | None) -> str:
    """Means before and after the edit, the latter with its 95 % interval."""
    if estimates is None:
        return "-"
    before = f"{estimates['before']['mean']:.2f} → " if "before" in estimates else ""
    return before + "{mean:.3f} [{low:.2f}, {high:.2f}]".format(**estimates["after"])


def mean(estimates: dict[str, dict[str, float]] | None) -> float | None:
    """The mean after the edit."""
    return estimates["after"]["mean"] if estimates else None


def line(cells: list[str]) -> str:
    """A row of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def head(columns: list[str]) -> str:
    """The head of a Markdown table."""
    return f"{line(columns)}\n|{' --- |' * len(columns)}"
