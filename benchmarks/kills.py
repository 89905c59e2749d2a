"""Bit-identical results of killed and resumed runs: ``python benchmarks/kills.py [--ranks 2]``.

Of each method one run is not interrupted; others, with the same config, are killed repeatedly with
``kill -9``, each time at a random moment over the whole length of a run (with DDP: a random rank),
and resumed with the command that a user would use. Edit, logged rows, counted steps and figures
must equal those of the first run; the end of one rank must end the others within a minute, with a
message that names it. Exit code 1 if anything differs.
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

#: Seconds in which the other ranks must end.
LIMIT = 60.0

PROMPTS = ["a dog", "a tree", "a car"]


def config(method: str, steps: int) -> dict:
    """Config of a short run with all state to resume: a bank, a retention term and a monitor."""
    images = {"class_path": "GeneratedImages", "init_args": {"images": 2, "steps": 2}}
    own = {"mace": {"latents": images}, "uce": {"preserve": PROMPTS}}
    gradient = {
        "lr": 1e-3,
        "warmup": 3,
        "latents": {"class_path": "TrajectoryBank", "init_args": {"trajectories": 4, "steps": 4}},
    }
    arguments = {
        "concepts": [{"name": "cat", "anchor": "dog"}, {"name": "star", "anchor": "heart"}],
        "backbone": "TinyBackbone",
    }
    arguments |= own.get(method, gradient)
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
        "model": {"class_path": method.upper(), "init_args": arguments},
        "trainer": trainer | {"callbacks": callbacks},
        "data": {"batch_size": 2, "others": 4, "steps": 4, "seeds": 2},
        "save_every": 5,
    }


def command(folder: Path, options: list[str]) -> list[str]:
    """Arguments of the next command; empty if the run is finished and measured."""
    if (folder / "edit.safetensors").exists():
        measured = any(
            (place / "metrics.json").exists() for place in (folder, *folder.glob("test*"))
        )
        return [] if measured else ["test", "--ckpt_path", str(folder), *options]
    if (folder / "checkpoints" / "last.ckpt").exists():
        return ["fit", "--ckpt_path", str(folder), *options]
    return [
        "fit",
        "--config",
        str(folder.parent / "config.yaml"),
        "--run_dir",
        str(folder),
        *options,
    ]


def start(argv: list[str], log: Path) -> subprocess.Popen:
    """Start a command of `erasure`."""
    with log.open("wb") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "erasure_lightning", *argv],
            stdout=file,
            stderr=subprocess.STDOUT,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )


def ranks(process: subprocess.Popen) -> list[int]:
    """Ids of a process and of its children."""
    try:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    except OSError:
        children = []
    return [process.pid, *map(int, children)]


def run_and_kill(argv: list[str], log: Path, after: float, lots: random.Random) -> tuple[bool, str]:
    """Start a command and kill one of its processes after some seconds.

    Returns:
        Whether a process was killed, and what is wrong with the end of the others; empty if nothing
        is.
    """
    process = start(argv, log)
    try:
        code = process.wait(after)
        return False, "" if code == 0 else f"exit code {code}: {log.read_text()[-300:]}"
    except subprocess.TimeoutExpired:
        pids = ranks(process)
        rank = lots.randrange(len(pids))
        os.kill(pids[rank], signal.SIGKILL)
    deadline = time.monotonic() + LIMIT
    while any(alive(pid) for pid in pids) and time.monotonic() < deadline:
        process.poll()
        time.sleep(0.1)
    if left := [pid for pid in pids if alive(pid)]:
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        return True, f"{len(left)} processes still there {LIMIT:.0f} s after rank {rank} was killed"
    done = ("Generate images of", "Measured;")  # the command had finished
    ends = ("gone", "ended while it started", "never been heard of", *done)
    if len(pids) > 1 and not any(end in log.read_text() for end in ends):
        return True, f"no message names rank {rank}: {log.read_text()[-300:]}"
    return True, ""


def alive(pid: int) -> bool:
    """Whether a process runs."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def rows(path: Path) -> list[dict]:
    """The rows logged in training, without figures, which a later test writes elsewhere."""
    rows = [
        {k: v for k, v in row.items() if v and not k.startswith("measure/")}
        for row in read_metrics(path)
    ]
    return [row for row in rows if row.keys() > {"step", "epoch"}]


def state(folder: Path) -> tuple[bytes, list[dict], dict]:
    """Edit, logged rows and counts, which must not depend on kills."""
    cost = json.loads((folder / "cost.json").read_text())
    # Evaluations are not compared: images may be drawn once more.
    counts = {name: cost[name] for name in ("steps", "backwards", "trained_parameters")}
    return (folder / "edit.safetensors").read_bytes(), rows(folder / "metrics.csv"), counts


def figures(folder: Path) -> dict:
    """Figures of the fit, or of the test that followed it."""
    path, *_ = [
        place / "metrics.json"
        for place in (folder, *folder.glob("test*"))
        if (place / "metrics.json").exists()
    ]
    return json.loads(path.read_text())["estimates"]


def check(
    method: str, kills: int, options: list[str], folder: Path, lots: random.Random, steps: int
) -> tuple[int, list[str]]:
    """Kill runs of a method; returns the number of runs, and the differences."""
    (folder / "config.yaml").write_text(yaml.safe_dump(config(method, steps)))
    whole = folder / "whole"
    log = folder / "log.txt"
    start_time = time.monotonic()
    if start(command(whole, options), log).wait():
        return 0, [log.read_text()[-500:]]
    length = time.monotonic() - start_time
    wrong = []
    runs = 0
    while kills > 0 and not wrong:
        run = folder / f"run-{runs}"
        runs += 1
        while argv := command(run, options):
            was_killed, trouble = run_and_kill(
                argv, log, lots.uniform(0, length) if kills > 0 else 600.0, lots
            )
            kills -= was_killed
            if trouble:
                wrong.append(f"{argv[0]}: {trouble}")
                break
        else:
            names = ("edit.safetensors", "metrics.csv", "cost.json", "metrics.json")
            own = (*state(run), figures(run))
            expected = (*state(whole), figures(whole))
            files = zip(names, own, expected, strict=True)
            wrong += [f"{run.name}: {name} differs" for name, one, other in files if one != other]
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
    ddp = ["--trainer.devices", str(options.ranks), "--trainer.strategy", "ddp"]
    ddp += ["--hang_timeout", "40"]
    print(head(["method", "ranks", "kills", "runs", "differences"]), flush=True)
    failed = False
    for method in options.methods:
        with TemporaryDirectory() as name:
            lots = random.Random(f"{options.seed} {method}")
            own = ddp if options.ranks > 1 else []
            runs, wrong = check(method, options.kills, own, Path(name), lots, options.steps)
        failed |= bool(wrong)
        differences = " ".join("; ".join(wrong).split()) or "none"
        cells = [method, str(options.ranks), str(options.kills), str(runs), differences]
        print(line(cells), flush=True)
    raise SystemExit(failed)


if __name__ == "__main__":
    main()
