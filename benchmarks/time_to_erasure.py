"""Time of ESD and of its published schedule: ``python benchmarks/time_to_erasure.py``.

Both erase a concept of the emoji world on our backbone, in processes of one thread that run side by
side, and are measured as `erasure fit` measures. *published* is the schedule of
rohitgandikota/erasing @ 25613d2: before every iteration a fresh rollout of 0 to 49 of 50 steps of
the frozen original (there a second model, here our shared one) at guidance 3; one latent, the bare
name, Adam at a constant rate. *as shipped* is `configs/esd.yaml`. *short* is the same with a
smaller bank and fewer steps at eight times the rate: enough for the published schedule's erasure.
*seconds* are wall-clock time of training; *processor* is processor time, which is independent of
the machine's load, and *times* the ratio of the published schedule's to each.
"""

import argparse
import json
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from rows import fitted, head, line, mean
from torch import Tensor
from torch.nn.functional import mse_loss

from erasure_lightning.concepts.concept import PromptBatch
from erasure_lightning.diffusion.sampling import RolloutStep, rollout
from erasure_lightning.methods.esd import ESD
from erasure_lightning.training.latent_sources import NoisyBatch, Teacher

#: Sampling steps and guidance of a rollout.
STEPS, GUIDANCE = 50, 3.0


class PublishedESD(ESD):
    """ESD with a fresh rollout before every iteration, as in the official code."""

    def noisy_batch(self, sentences: PromptBatch) -> NoisyBatch:
        """The latent after 0 to 49 steps of a rollout, with the teacher's predictions there."""
        number = int(torch.randint(STEPS, ()))
        prompts = self.original.encode(sentences.prompts)
        seed = int(torch.randint(2**31, ()))
        with torch.no_grad():
            steps = rollout(self.original, prompts, [seed], steps=STEPS, guidance=GUIDANCE)
            self._step: RolloutStep = next(islice(steps, number, None))
        x = self._step.x
        t = self._step.t.expand(1).float()
        return NoisyBatch(x, t, sentences, Teacher(self.original, x, t, sentences))

    def erasure_loss(self, batch: NoisyBatch) -> Tensor:
        """``mse(eps(c), eps*(0) - eta (eps*(c) - eps*(0)))``."""
        conditional, unconditional = self._step.conditional, self._step.unconditional
        target = unconditional - self.eta * (conditional - unconditional)
        return mse_loss(self.student(batch), target)


class Processor(Callback):
    """Writes the processor time of training in seconds into the run's folder."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._start = time.process_time()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the file."""
        seconds = time.process_time() - self._start
        Path(trainer.default_root_dir, "processor.json").write_text(json.dumps(seconds))


def published(iterations: int) -> list[str]:
    """Arguments of a run of the published schedule."""
    arguments = ["--model", "time_to_erasure.PublishedESD", "--model.backbone", "emoji-world"]
    arguments += ["--model.lr", "5e-4", "--data.batch_size", "1"]
    return [*arguments, "--data.templates", '["{}"]', "--trainer.max_steps", str(iterations)]


SHIPPED = ["--config", "esd.yaml"]
SHORT = [
    "--model.lr",
    "8e-4",
    "--model.latents.trajectories",
    "8",
    "--data.steps_per_concept",
    "16",
]

COLUMNS = (
    *("own", "domain", "retain", "feature", "evaluations", "with gradient"),
    *("seconds", "processor, s", "times"),
)


def row(name: str, folder: Path, arguments: list[str], concept: str) -> dict[str, Any]:
    """A run's figures."""
    originals = str(folder.parent / "originals")
    common = ["--model.concepts", f"{concept}.yaml", "--data.originals", originals]
    common += ["--trainer.callbacks+=time_to_erasure.Processor"]
    metrics, cost = fitted(folder, [*arguments, *common], threads=1)
    estimates = metrics["estimates"]
    groups = {"own": "efficacy", "domain": "generality", "retain": "specificity"}
    figures = {key: mean(estimates[group]["recognized"]) for key, group in groups.items()}
    feature = mean(estimates["structure"]["similarity"])
    worked = json.loads((folder / "processor.json").read_text())
    return {"": name, **figures, "feature": feature, **cost, "processor": worked}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/time-to-erasure"))
    parser.add_argument("--concept", default="cigarette", help="a file of configs/concepts")
    parser.add_argument("--iterations", type=int, default=200, help="of the published schedule")
    options = parser.parse_args()
    cases = {
        "published": published(options.iterations),
        "as shipped": SHIPPED,
        "short": [*SHIPPED, *SHORT],
    }
    with ThreadPoolExecutor(len(cases)) as pool:
        out = options.out / options.concept
        runs = [
            pool.submit(row, name, out / name.replace(" ", "-"), arguments, options.concept)
            for name, arguments in cases.items()
        ]
        rows = [run.result() for run in runs]
    print(head([options.concept, *COLUMNS]))
    for figures in rows:
        shares = [f"{figures[key]:.3f}" for key in ("own", "domain", "retain", "feature")]
        counts = [f"{figures[key]:,}" for key in ("evaluations", "backwards")]
        times = [
            f"{figures['seconds']:.0f}",
            f"{figures['processor']:.1f}",
            f"{rows[0]['processor'] / figures['processor']:.1f}",
        ]
        print(line([figures[""], *shares, *counts, *times]))


if __name__ == "__main__":
    main()
