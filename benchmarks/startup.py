"""Start-up time of commands and of a fit's first step: ``python benchmarks/startup.py``.

Medians over fresh processes of one thread, in turns: *seconds* of wall-clock time, and of
*processor* time, which is independent of the machine's load; ratios are of the latter. They are
relative to imports that every fit needs: torch, and Lightning's command line, which imports torch
and much else. *first step* ends with the first loss (or a closed form's new weights); it includes
loading the emoji world, and the method's preparation: ESD's rollouts for its bank are more than
half of all its evaluations.
"""

import argparse
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from rows import head, line

#: Ends the process after the first training step of a config; any other end is a failure.
FIRST_STEP = """
import os, sys
from erasure_lightning.training.closed_form import ClosedFormErasure
from erasure_lightning.training.gradient import GradientErasure
for cls in (ClosedFormErasure, GradientErasure):
    step = cls.training_step
    cls.training_step = lambda *args, step=step: (step(*args), os._exit(0))
from erasure_lightning.__main__ import main
sys.exit(main(["fit", "--config", sys.argv[1]]) or 1)
"""

#: Parses the arguments without loading a model.
PARSED = ["-m", "erasure_lightning", "fit", "--model", "UCE"]
PARSED += ["--model.backbone", "nowhere", "--print_config"]

#: Concepts in a long file of names.
NAMES = 1834

CASES = {
    "`import torch`": ["-c", "import torch"],
    "`import lightning.pytorch.cli`": ["-c", "import lightning.pytorch.cli"],
    "`erasure --help`": ["-m", "erasure_lightning", "--help"],
    "`erasure methods`": ["-m", "erasure_lightning", "methods"],
    "`erasure attacks`": ["-m", "erasure_lightning", "attacks"],
    "`erasure fit --model UCE`, one concept, parsed": [
        *PARSED,
        "--model.concepts",
        "[{name: cat}]",
    ],
    f"`erasure fit --model UCE`, a file of {NAMES} names, parsed": [
        *PARSED,
        "--model.concepts",
        "names.txt",
    ],
    "`erasure fit --config uce.yaml`, first step": ["-c", FIRST_STEP, "uce.yaml"],
    "`erasure fit --config sage.yaml`, first step": ["-c", FIRST_STEP, "sage.yaml"],
    "`erasure fit --config esd.yaml`, first step": ["-c", FIRST_STEP, "esd.yaml"],
}


def now() -> tuple[float, float]:
    """Wall-clock time, and the processor time of child processes."""
    worked = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.perf_counter(), worked.ru_utime + worked.ru_stime


def seconds(arguments: list[str]) -> tuple[float, float]:
    """Wall-clock and processor time of a fresh Python with these arguments."""
    with TemporaryDirectory() as folder:
        names = "".join(f"painter number {i}x\n" for i in range(NAMES))
        Path(folder, "names.txt").write_text(names)
        start, worked = now()
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        subprocess.run(
            [sys.executable, *arguments],
            cwd=folder,
            env=environment,
            capture_output=True,
            check=True,
        )
        end, done = now()
        return end - start, done - worked


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    times = [{name: seconds(arguments) for name, arguments in CASES.items()} for _ in range(rounds)]
    medians = {name: [median(each[name][i] for each in times) for i in range(2)] for name in CASES}
    (_, torch), (_, lightning), *_ = medians.values()
    ratios = ["times `import torch`", "times `import lightning.pytorch.cli`"]
    print(head(["", "seconds", "processor, s", *ratios]))
    for name, (clock, worked) in medians.items():
        figures = (clock, worked, worked / torch, worked / lightning)
        print(line([name, *(f"{figure:.2f}" for figure in figures)]))


if __name__ == "__main__":
    main()
