"""Peak memory of a run of SAGE beside loading and sampling: ``python benchmarks/cost.py``.

Peaks of processes that load the pipeline, load it and sample, and fit. `steps.py` has the time.
"""

import argparse
import subprocess
import sys

LOAD = """from erasure_lightning.backbones.loading import load_backbone
model = load_backbone('emoji-world')"""
SAMPLE = f"""{LOAD}
from erasure_lightning.diffusion.sampling import sample_images
sample_images(model, ['a fox'] * 6, range(6), steps=20, guidance=4)"""
FIT = "import benchmarks.cost as cost; cost.fit_sage(12)"
PEAK = "\nfrom erasure_lightning.callbacks.cost import peak_memory; print(peak_memory())"


def fit_sage(steps: int):  # noqa: ANN201  (an import for the annotation would be measured too)
    """Fit SAGE with its retention callbacks for some steps."""
    from erasure_lightning.concepts.concept import Concept
    from erasure_lightning.methods.sage import SAGE
    from erasure_lightning.retention.global_alignment import GlobalSemanticAlignment
    from erasure_lightning.retention.local_noise import LocalNoisePreservation
    from erasure_lightning.retention.local_states import LocalStatePreservation
    from erasure_lightning.retention.unconditional_drift import UnconditionalDrift
    from erasure_lightning.testing import quick_fit

    module = SAGE(
        backbone="emoji-world",
        concepts=[Concept("cigarette", "lollipop")],
        blocks=2,
        check_steps=5,
        check_from=5,
    )
    local = LocalNoisePreservation(batch_size=4)
    terms = GlobalSemanticAlignment(), local, LocalStatePreservation(), UnconditionalDrift()
    return quick_fit(module, steps, *terms)


def peak(code: str) -> float:
    """Peak memory in GiB of a fresh process."""
    command = [sys.executable, "-W", "ignore", "-c", code + PEAK]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(result.stdout.split()[-1])


def main() -> None:
    """Print the peaks."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.parse_args()
    load, sample, fit = peak(LOAD), peak(SAMPLE), peak(FIT)
    print(f"peak memory: loading {load:.2f} GiB, sampling {sample:.2f} GiB, fitting {fit:.2f} GiB")


if __name__ == "__main__":
    main()
