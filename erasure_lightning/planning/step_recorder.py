"""`StepRecorder`: memory and evaluations of the steps of a fit on fake tensors."""

from collections import Counter
from collections.abc import Sequence
from typing import Any, cast

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from erasure_lightning.distributed.lightning_internals import jump_to_step
from erasure_lightning.planning.evaluation_counters import (
    STUDENT_CALLS,
    TEACHER_CALLS,
    DenoiserCounter,
    MonitorCounter,
    RolloutCounter,
    WordSearch,
)
from erasure_lightning.planning.memory_footprint import footprint_of
from erasure_lightning.planning.memory_tracker import MemoryTracker
from erasure_lightning.training.base import ErasureModule


class StepRecorder(Callback):
    """Records peak memory and evaluations of the first and the last steps, and skips the others.

    Args:
        memory: The tracker that is active during the fit.
        foreach: Whether the optimizer updates all weights at once, as on the planned device.
        in_eight_bits: Whether the optimizer's state is planned in 8 bits.
    """

    def __init__(self, memory: MemoryTracker, foreach: bool, in_eight_bits: bool) -> None:
        self.memory = memory
        self.foreach = foreach
        self.in_eight_bits = in_eight_bits
        self.kinds = 1  # of step, which take turns
        self.counters: Sequence[DenoiserCounter] = []
        self.rollouts: RolloutCounter | None = None
        self.search: WordSearch | None = None
        self.monitors: list[MonitorCounter] = []
        self.prepared = 0
        self.peaks = {"preparing": 0, "step": 0}
        self.counts: list[dict[str, int]] = []

    def on_train_start(self, trainer: Trainer, *_: Any) -> None:
        """Plan an update of all weights at once, or of one after the other."""
        for optimizer in trainer.optimizers:
            for group in optimizer.param_groups:
                group["foreach"] = self.foreach

    def on_train_batch_start(self, trainer: Trainer, _: Any, batch: Any, batch_idx: int) -> None:
        """Begin to count a step; before the first one, end what prepares it."""
        peak = self.memory.restart()
        if batch_idx % trainer.accumulate_grad_batches:  # within a step
            return
        if not self.counts:
            self.peaks["preparing"] = max(self.peaks["preparing"], peak)
            total = _total(self.counters)
            self.prepared += total[STUDENT_CALLS] + total[TEACHER_CALLS]
        for counter in self.counters:
            counter.counts = Counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Record a step, and jump to the last ones of the fit."""
        self.peaks["step"] = max(self.peaks["step"], self.memory.restart())
        if (batch_idx + 1) % trainer.accumulate_grad_batches and not trainer.is_last_batch:
            return
        self.counts.append(_total(self.counters))
        last = cast(Any, trainer).datamodule.training_steps - 1
        if trainer.global_step > last or len(self.counts) > self.kinds:
            trainer.should_stop = True
        jump_to_step(trainer, max(trainer.global_step, last + 1 - self.kinds))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record what is held in training."""
        self.held = footprint_of(cast(ErasureModule, pl_module), self.in_eight_bits)

    def sampled(self, steps: int) -> int:
        """Latents that samplers evaluate in a fit of some steps."""
        in_run = sum(counter.sampled for counter in self.counters)
        return in_run + (self.rollouts.later(len(self.counts), steps) if self.rollouts else 0)

    def all_peaks(self) -> dict[str, int]:
        """Peaks of the run: of steps, of samplers and of monitors."""
        return self.peaks | {
            "sampling": max(counter.sampling_peak for counter in self.counters),
            "monitoring": max((monitor.peak for monitor in self.monitors), default=0),
        }

    @property
    def evaluations(self) -> dict[str, dict[str, int]]:
        """Evaluations of the steps that were run."""
        other = {"other": self.counts[-2]} if self.kinds > 1 and len(self.counts) > 1 else {}
        return {"first": self.counts[0], "last": self.counts[-1]} | other


def _total(counters: Sequence[DenoiserCounter]) -> dict[str, int]:
    """Evaluations by all models, also of keys that were not counted."""
    keys = (STUDENT_CALLS, TEACHER_CALLS, "backwards")
    return {key: sum(counter.counts[key] for counter in counters) for key in keys}
