"""What an edit cost: seconds, memory, trained parameters."""

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
from erasure_lightning.training.base import ErasureModule


class Cost(Callback):
    """Writes ``cost.json`` into the run's folder when a fit has ended.

    ``seconds`` of training (all parts of a resumed run together), ``steps``,
    ``trained_parameters``, ``evaluations`` (latents that a denoiser was asked about, the original's
    included) with ``backwards`` among them that a gradient could flow through, and ``peak_gib``:
    the most memory a process held up to then, of the GPU's if it trained there. Evaluations are
    those of all ranks.
    """

    def __init__(self) -> None:
        self._earlier = 0.0
        self._start = 0.0
        self._tally = EvaluationCounter(())

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock, and count what denoisers are asked."""
        self._start = time.monotonic()
        module = cast(ErasureModule, pl_module)
        self._tally.denoisers = {
            module.backbone.denoiser,
            module.original.denoiser,
        }  # may be one and the same
        self._tally.start()

    @property
    def seconds(self) -> float:
        """Time spent training so far."""
        return self._earlier + time.monotonic() - self._start

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the file."""
        self._tally.stop()
        trained = cast(ErasureModule, pl_module).trainable()
        cost = {
            "seconds": round(self.seconds, 2),
            "steps": trainer.global_step,
            "trained_parameters": sum(p.numel() for p in trained.values()),
            **self._asked(),
            "peak_gib": round(
                max(all_gather_items([peak_memory(trainer.strategy.root_device)])), 3
            ),
        }
        if trainer.is_global_zero:
            write_json(Path(trainer.default_root_dir, "cost.json"), cost)

    def _asked(self) -> dict[str, int]:
        """What all ranks asked of denoisers."""
        ranks = all_gather_items([(self._tally.evaluations, self._tally.backwards)])
        return {
            "evaluations": sum(rank[0] for rank in ranks),
            "backwards": sum(rank[1] for rank in ranks),
        }

    def state_dict(self) -> dict[str, Any]:
        """What was spent, so that a resumed run adds to it."""
        return {"seconds": self.seconds if self._start else self._earlier, **self._asked()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Add to what an earlier part took; what ranks asked counts on the first."""
        self._earlier = state_dict["seconds"]
        if rank():
            return
        self._tally.evaluations, self._tally.backwards = (
            state_dict.get("evaluations", 0),
            state_dict.get("backwards", 0),
        )


def peak_memory(device: torch.device | None = None) -> float:
    """The most memory this process ever held, in GiB.

    Args:
        device: Where it computed; by default the GPU, where there is one.
    """
    if torch.cuda.is_available() if device is None else device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts in KiB
