"""Kill -9 at any moment, restart, bit-identical end: ``python benchmarks/kills.py``; ``--ranks 2``
for DDP.

Of each method one run is left in peace; others, with the same config, are killed again and again,
each time at a moment drawn over the whole length of a run (with DDP: a rank by lot), and restarted
with the command that a user would use. Edit, logged rows, counted steps and figures must end up as
if nothing had happened; a rank's death must end the others within a minute, with a sentence that
names it. Exit code 1 where anything differs.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import yaml
from rows import head, line

from erasure_lightning.runs.csv_log import read_metrics

METHODS = ("esd", "sage", "mace", "spm", "sdd", "uce", "realera")

#: Seconds in which the other ranks must have ended.
LIMIT = 60.0

PROMPTS = ["a dog", "a tree", "a car"]


def config(method: str, steps: int) -> dict:
    """A run of seconds with all that a run can have to remember: a bank, retention terms, a
    monitor.
    """
    named = {"MACE": {"pictures": 2, "steps": 2}, "UCE": {"preserve": PROMPTS}}.get(
        method.upper(), {}
    )
    trained = {
        "lr": 1e-3,
        "warmup": 3,
        "latents": {"class_path": "TrajectoryBank", "init_args": {"trajectories": 4, "steps": 4}},
    }
    given = {
        "concepts": [{"name": "cat", "anchor": "dog"}, {"name": "star", "anchor": "heart"}],
        "backbone": "TinyBackbone",
    }
    given |= named if method in ("uce", "mace") else trained
    callbacks = [
        {"class_path": "LocalNoisePreservation", "init_args": {"weight": 0.5, "prompts": PROMPTS}},
        {
            "class_path": "RetentionMonitor",
            "init_args": {"every": 10, "steps": 2, "prompts": PROMPTS},
        },
    ]
    trainer = {
        "max_steps": steps,
        "accelerator": "cpu",
        "log_every_n_steps": 1,
        "enable_progress_bar": False,
    }
    return {
        "model": {"class_path": method.upper(), "init_args": given},
        "trainer": trainer | {"callbacks": callbacks},
        "data": {"batch_size": 2, "others": 4, "steps": 4, "seeds": 2},
        "save_every": 5,
    }


def command(folder: Path, given: list[str]) -> list[str]:
    """What a user would type next; empty where everything is there."""
    if (folder / "edit.safetensors").exists():
        done = any((place / "metrics.json").exists() for place in (folder, *folder.glob("test*")))
        return [] if done else ["test", "--ckpt_path", str(folder), *given]
    if (folder / "checkpoints" / "last.ckpt").exists():
        return ["fit", "--ckpt_path", str(folder), *given]
    return ["fit", "--config", str(folder.parent / "config.yaml"), "--run_dir", str(folder), *given]


def start(argv: list[str], log: Path) -> subprocess.Popen:
    """A command of `erasure` as a process."""
    with log.open("wb") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "erasure_lightning", *argv],
            stdout=file, stderr=subprocess.STDOUT, env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip


def ranks(process: subprocess.Popen) -> list[int]:
    """The process and those it has started."""
    try:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    except OSError:
        children = []
    return [process.pid, *map(int, children)]


def killed(argv: list[str], log: Path, after: float, lots: random.Random) -> tuple[bool, str]:
    """Start a command and kill one of its processes after so many seconds.

    Returns:
        Whether it came to that, and what is wrong with how the others ended, empty if nothing.
    """
    process = start(argv, log)
    try:
        code = process.wait(after)
        return False, "" if code == 0 else f"exit code {code}: {log.read_text()[-300:]}"
    except subprocess.TimeoutExpired:
        found = ranks(process)
        rank = lots.randrange(len(found))
        os.kill(found[rank], signal.SIGKILL)
    until = time.monotonic() + LIMIT
    while any(alive(pid) for pid in found) and time.monotonic() < until:
        process.poll()
        time.sleep(0.1)
    if left := [pid for pid in found if alive(pid)]:
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        return True, f"{len(left)} processes still there {LIMIT:.0f} s after rank {rank} was killed"
    done = ("Draw prompts", "Measured;")  # all was done already
    ends = ("gone", "ended while it started", "never been heard of", *done)
    if len(found) > 1 and not any(end in log.read_text() for end in ends):
        return True, f"nobody told of rank {rank}: {log.read_text()[-300:]}"
    return True, ""


def alive(pid: int) -> bool:
    """Whether a process runs."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def rows(path: Path) -> list[dict]:
    """What was logged in training; an edit that was measured later has its figures in a folder of
    their own.
    """
    found = [
        {k: v for k, v in row.items() if v and not k.startswith("measure/")}
        for row in read_metrics(path)
    ]
    return [row for row in found if row.keys() > {"step", "epoch"}]


def state(folder: Path) -> tuple[bytes, list[dict], dict]:
    """What must not depend on kills."""
    cost = json.loads((folder / "cost.json").read_text())
    return (
        (folder / "edit.safetensors").read_bytes(),
        rows(folder / "metrics.csv"),
        {
            name: cost[name] for name in ("steps", "backwards", "trained_parameters")
        },  # pictures may be drawn once more
    )


def figures(folder: Path) -> dict:
    """What was measured, by the fit or by the test that followed it."""
    found, *_ = [
        place / "metrics.json"
        for place in (folder, *folder.glob("test*"))
        if (place / "metrics.json").exists()
    ]
    return json.loads(found.read_text())["estimates"]


def check(
    method: str, kills: int, given: list[str], folder: Path, lots: random.Random, steps: int
) -> tuple[int, list[str]]:
    """Kill runs of a method; how many runs it took, and what was wrong."""
    (folder / "config.yaml").write_text(yaml.safe_dump(config(method, steps)))
    whole, log = folder / "whole", folder / "log.txt"
    begun = time.monotonic()
    if start(command(whole, given), log).wait():
        return 0, [log.read_text()[-500:]]
    length, wrong, runs = time.monotonic() - begun, [], 0
    while kills > 0 and not wrong:
        run, runs = folder / f"run-{runs}", runs + 1
        while argv := command(run, given):
            came, trouble = killed(argv, log, lots.uniform(0, length) if kills > 0 else 600.0, lots)
            kills -= came
            if trouble:
                wrong.append(f"{argv[0]}: {trouble}")
                break
        else:
            names = ("edit.safetensors", "metrics.csv", "cost.json", "metrics.json")
            pairs = zip(
                names, (*state(run), figures(run)), (*state(whole), figures(whole)), strict=True
            )
            wrong += [f"{run.name}: {name} differs" for name, one, other in pairs if one != other]
    return runs, wrong


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--methods", nargs="+", default=METHODS, help="by name")
    parser.add_argument("--kills", type=int, default=20, help="of each method")
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options = parser.parse_args()
    ddp = [
        "--trainer.devices",
        str(options.ranks),
        "--trainer.strategy",
        "ddp",
        "--hang_timeout",
        "40",
    ]
    print(head(["method", "ranks", "kills", "runs", "differences"]), flush=True)
    failed = False
    for method in options.methods:
        with TemporaryDirectory() as name:
            given, lots = (
                ddp if options.ranks > 1 else [],
                random.Random(f"{options.seed} {method}"),
            )
            runs, wrong = check(method, options.kills, given, Path(name), lots, options.steps)
        failed |= bool(wrong)
        said = " ".join("; ".join(wrong).split()) or "none"
        print(line([method, str(options.ranks), str(options.kills), str(runs), said]), flush=True)
    raise SystemExit(failed)


if __name__ == "__main__":
    main()
