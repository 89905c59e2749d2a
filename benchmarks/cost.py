"""What a run of SAGE costs beside what it must cost: ``python benchmarks/cost.py``.

Step: a training step of `configs/sage.yaml` against the bare student's forward and backward on the same prompts and
latents, in turns in one process. Memory: peaks of processes that load the pipeline, load it and sample, and fit.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from statistics import median

LOAD = "from erasure_lightning.backbones.loading import load_backbone; model = load_backbone('emoji-world')"
SAMPLE = (
    f"{LOAD}; from erasure_lightning.sampling import draw; draw(model, ['a fox'] * 6, range(6), steps=20, guidance=4)"
)
FIT = "import benchmarks.cost as c; c.fitted(12)"
PEAK = "; from erasure_lightning.callbacks.cost import peak_memory; print(peak_memory())"


def fitted(steps: int):  # noqa: ANN201  (imports stay inside, so that the other processes do not pay for them)
    """SAGE with its retention, after so many steps."""
    from erasure_lightning.concepts import Concept
    from erasure_lightning.methods.sage import SAGE
    from erasure_lightning.retention.global_alignment import GlobalSemanticAlignment
    from erasure_lightning.retention.local_noise import LocalNoisePreservation
    from erasure_lightning.retention.local_states import LocalStatePreservation
    from erasure_lightning.retention.unconditional_drift import UnconditionalDrift
    from erasure_lightning.testing import fit

    module = SAGE(concepts=[Concept("cigarette", "lollipop")])
    terms = GlobalSemanticAlignment(), LocalNoisePreservation(), LocalStatePreservation(), UnconditionalDrift()
    return fit(module, steps, *terms)


def seconds(work: Callable[[], object]) -> float:
    """How long it takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def step_times(rounds: int) -> tuple[float, float]:
    """Medians of a whole step and of the bare student's share of it."""
    module = fitted(12)
    module.log_dict = module.log = lambda *_, **__: None  # Lightning logs inside its loop only
    optimizer = module.configure_optimizers()["optimizer"]
    module.trainer.datamodule.batch_size = 4
    batch = module.trainer.datamodule._batch(0)

    def whole() -> None:
        module.training_step(batch, 0).backward()
        optimizer.step()
        optimizer.zero_grad()

    asked = module.backbone.embed([*batch.prompts, *batch.prompts])  # plain, and as the self-check found them
    retained = module.backbone.embed(["a fox"] * 64)
    local, held = module.backbone.embed(["a fox"] * 4), module.backbone.embed(["a fox"] * 17)
    x, t, batch = module.noisy_latents(batch)

    def bare() -> None:
        said = module.backbone.contextualize(asked).tokens.mean()
        kept = module.backbone.summarize(retained).mean() + module.backbone.contextualize(held).tokens.mean()
        (said + kept + module.backbone.denoise(x, t, module.backbone.contextualize(local)).mean()).backward()
        optimizer.zero_grad()

    pairs = [(seconds(whole), seconds(bare)) for _ in range(rounds)]
    return median(p[0] for p in pairs), median(p[1] for p in pairs)


def peak(code: str) -> float:
    """Peak memory in GiB of a fresh process."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code + PEAK], capture_output=True, text=True, check=True
    )
    return float(done.stdout.split()[-1])


def main() -> None:
    """Print both ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    rounds = parser.parse_args().rounds
    # Memory first: a child's peak begins at what its parent holds.
    load, sample, fit = peak(LOAD), peak(SAMPLE), peak(FIT)
    print(f"peak memory: loading {load:.2f} GiB, sampling {sample:.2f} GiB, fitting {fit:.2f} GiB")
    whole, bare = step_times(rounds)
    print(
        f"step: {whole * 1e3:.0f} ms, bare student forward and backward: {bare * 1e3:.0f} ms, ratio {whole / bare:.2f}"
    )


if __name__ == "__main__":
    main()
