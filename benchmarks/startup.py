"""How long one waits for commands, and for the first step of a fit: ``python
benchmarks/startup.py``.

Fresh processes of one thread in turns, medians: *seconds* on the clock, *processor* only when it
worked for them, which the machine's load does not stretch; ratios are of these. The yardsticks are
what no fit can do without: importing torch, and importing Lightning's command line, which imports
torch and much else. *first step* ends when the first loss is known (a closed form's new weights);
it includes loading the emoji world, and what the method does before: an ESD walks its bank of
trajectories there, which is more than half of all its evaluations.
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

#: Ends a process behind the first training step of the config it is given; ending in any other way
#: is a failure.
FIRST_STEP = """
import os, sys
from erasure_lightning.module import ClosedFormErasure, GradientErasure
for cls in (ClosedFormErasure, GradientErasure):
    step = cls.training_step
    cls.training_step = lambda *given, step=step: (step(*given), os._exit(0))
from erasure_lightning.__main__ import main
sys.exit(main(["fit", "--config", sys.argv[1]]) or 1)
"""

#: What a parser does with so many concepts and with one, without loading a model.
PARSED = [
    "-m",
    "erasure_lightning",
    "fit",
    "--model",
    "UCE",
    "--model.backbone",
    "nowhere",
    "--print_config",
]
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
    """The clock, and what the processor has worked for children."""
    worked = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.perf_counter(), worked.ru_utime + worked.ru_stime


def seconds(given: list[str]) -> tuple[float, float]:
    """How long a fresh Python takes for arguments, on the clock and of the processor."""
    with TemporaryDirectory() as folder:
        Path(folder, "names.txt").write_text(
            "".join(f"painter number {i}x\n" for i in range(NAMES))
        )
        start, worked = now()
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        subprocess.run(
            [sys.executable, *given], cwd=folder, env=environment, capture_output=True, check=True
        )
        end, done = now()
        return end - start, done - worked


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    times = [{name: seconds(given) for name, given in CASES.items()} for _ in range(rounds)]
    took = {name: [median(each[name][i] for each in times) for i in range(2)] for name in CASES}
    (_, torch), (_, lightning), *_ = took.values()
    print(
        head(
            [
                "",
                "seconds",
                "processor, s",
                "times `import torch`",
                "times `import lightning.pytorch.cli`",
            ]
        )
    )
    for name, (clock, worked) in took.items():
        print(
            line([name, *(f"{v:.2f}" for v in (clock, worked, worked / torch, worked / lightning))])
        )


if __name__ == "__main__":
    main()
