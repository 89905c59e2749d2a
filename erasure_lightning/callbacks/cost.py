"""`Cost`: time, memory and denoiser evaluations of a fit."""

import resource
import time
from pathlib import Path
from typing import Any, cast

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from erasure_lightning.diffusion.evaluation_counter import EvaluationCounter
from erasure_lightning.distributed.collectives import all_gather_items, rank
from erasure_lightning.files.writing import write_json
from erasure_lightning.runs.folder import Run
from erasure_lightning.training.base import ErasureModule


class Cost(Callback):
    """Writes ``cost.json`` into the run's folder at the end of a fit.

    * ``seconds`` of training and of the preparation before it, over all parts of a resumed run.
    * ``steps`` of the optimizer.
    * ``trained_parameters``, their number.
    * ``evaluations``: latents that went through a denoiser, the original's included, on all ranks.
    * ``backwards``: those of them that were evaluated with gradients enabled.
    * ``peak_gib``: peak memory of a process, of the GPU's if it trained there; the largest of all
      ranks.
    """

    def __init__(self) -> None:
        self._earlier = 0.0
        self._start = 0.0
        self._counter = EvaluationCounter(())

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock and the counter, before callbacks prepare for training."""
        if trainer.ckpt_path is None:  # what an earlier fit cost is no part of this one
            self._earlier = 0.0
            self._counter = EvaluationCounter(())
        self._start = time.monotonic()
        module = cast(ErasureModule, pl_module)
        # The set counts a denoiser that both models share once.
        self._counter.denoisers = {
            model.denoiser for model in (module.backbone, module.original, module.unedited)
        }
        self._counter.start()

    @property
    def seconds(self) -> float:
        """Training time so far, in seconds."""
        return self._earlier + time.monotonic() - self._start

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the file."""
        self._counter.stop()
        trained = cast(ErasureModule, pl_module).trainable()
        peaks = all_gather_items([peak_memory(trainer.strategy.root_device)])
        cost = {
            "seconds": round(self.seconds, 2),
            "steps": trainer.global_step,
            "trained_parameters": sum(p.numel() for p in trained.values()),
            **self._evaluations(),
            "peak_gib": round(max(peaks), 3),
        }
        if trainer.is_global_zero:
            write_json(Run(Path(trainer.default_root_dir)).cost, cost)

    def _evaluations(self) -> dict[str, int]:
        """Denoiser evaluations of all ranks."""
        counts = all_gather_items([(self._counter.evaluations, self._counter.backwards)])
        return {
            "evaluations": sum(evaluations for evaluations, _ in counts),
            "backwards": sum(backwards for _, backwards in counts),
        }

    def state_dict(self) -> dict[str, Any]:
        """Time and evaluations so far, to which a resumed run adds."""
        seconds = self.seconds if self._start else self._earlier
        return {"seconds": seconds, **self._evaluations()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore them; rank 0 takes the evaluations of all ranks."""
        self._earlier = state_dict["seconds"]
        if rank() == 0:
            self._counter.evaluations = state_dict.get("evaluations", 0)
            self._counter.backwards = state_dict.get("backwards", 0)


def peak_memory(device: torch.device | None = None) -> float:
    """Peak memory of this process, in GiB.

    Args:
        device: The device it computes on; by default the GPU, if there is one.
    """
    on_gpu = torch.cuda.is_available() if device is None else device.type == "cuda"
    if on_gpu:
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts in KiB
