"""How long one waits for commands, and for the first step of a fit: ``python benchmarks/startup.py``.

Fresh processes in turns, medians. The yardsticks are what no fit can do without: importing torch, and importing
Lightning's command line, which imports torch and much else. *first step* ends when the first loss is known (a closed
form's new weights); it includes loading the emoji world, and what the method does before: an ESD's bank of
trajectories is walked there, on half of its evaluations.
"""

import argparse
import subprocess
import sys
import time
from statistics import median
from tempfile import TemporaryDirectory

from rows import head, line

#: Ends a process behind the first training step of the config it is given; ending in any other way is a failure.
FIRST_STEP = """
import os, sys
from erasure_lightning.module import ClosedFormErasure, GradientErasure
for cls in (ClosedFormErasure, GradientErasure):
    step = cls.training_step
    cls.training_step = lambda *given, step=step: (step(*given), os._exit(0))
from erasure_lightning.__main__ import main
sys.exit(main(["fit", "--config", sys.argv[1]]) or 1)
"""

CASES = {
    "`import torch`": ["-c", "import torch"],
    "`import lightning.pytorch.cli`": ["-c", "import lightning.pytorch.cli"],
    "`erasure --help`": ["-m", "erasure_lightning", "--help"],
    "`erasure methods`": ["-m", "erasure_lightning", "methods"],
    "`erasure attacks`": ["-m", "erasure_lightning", "attacks"],
    "`erasure fit --config uce.yaml`, first step": ["-c", FIRST_STEP, "uce.yaml"],
    "`erasure fit --config sage.yaml`, first step": ["-c", FIRST_STEP, "sage.yaml"],
    "`erasure fit --config esd.yaml`, first step": ["-c", FIRST_STEP, "esd.yaml"],
}


def seconds(given: list[str]) -> float:
    """How long a fresh Python takes for arguments."""
    with TemporaryDirectory() as folder:
        start = time.perf_counter()
        subprocess.run([sys.executable, *given], cwd=folder, capture_output=True, check=True)
        return time.perf_counter() - start


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    times = [{name: seconds(given) for name, given in CASES.items()} for _ in range(rounds)]
    took = {name: median(each[name] for each in times) for name in CASES}
    torch, lightning, *_ = took.values()
    print(head(["", "seconds", "times `import torch`", "times `import lightning.pytorch.cli`"]))
    for name, value in took.items():
        print(line([name, f"{value:.2f}", f"{value / torch:.2f}", f"{value / lightning:.2f}"]))


if __name__ == "__main__":
    main()
