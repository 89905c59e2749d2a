"""Forecast of the memory and denoiser evaluations of a fit, from steps on fake tensors."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from erasure_lightning.data.datamodule import PromptData
from erasure_lightning.distributed.lightning_internals import jump_to_step, keep_signal_handlers
from erasure_lightning.errors import ErasureError
from erasure_lightning.methods.fmn import FMN
from erasure_lightning.planning.evaluation_counters import (
    STUDENT_CALLS,
    TEACHER_CALLS,
    DenoiserCounter,
    MonitorCounter,
    RepeatedSteps,
    RolloutCounter,
    WordSearch,
    counters_of,
    shorten_inversion,
    shorten_maps,
)
from erasure_lightning.planning.fake_models import make_adapters_fake, make_fake
from erasure_lightning.planning.memory_footprint import MemoryFootprint, footprint_of
from erasure_lightning.planning.memory_tracker import MemoryTracker
from erasure_lightning.planning.repeated_blocks import RepeatedBlocks
from erasure_lightning.retention.base import RetentionCallback
from erasure_lightning.retention.monitor import RetentionMonitor
from erasure_lightning.training.adversary_kinds import InversionAdversary
from erasure_lightning.training.base import ErasureModule
from erasure_lightning.training.batch_sampling import sample_batch
from erasure_lightning.training.gradient import GradientErasure
from erasure_lightning.training.saliency import SalientErasure
from erasure_lightning.training.trajectory_bank import TrajectoryBank


@dataclass(frozen=True)
class FitForecast:
    """Memory in bytes and denoiser evaluations of a fit on one device.

    Args:
        held: Memory that is allocated throughout training.
        steps: Optimizer steps.
        peaks: Peak memory of each phase: ``preparing``, ``sampling`` (of a bank or of training
            images), ``step``, ``monitoring`` (by `RetentionMonitor`) and ``measuring``.
        evaluations: Latents that student and teacher evaluate in the ``first`` step, which fills a
            bank, and in the ``last``; ``backwards`` of them with gradient. Where two kinds of step
            take turns, ``other`` has those of the last step but one.
        sampled: Latents evaluated before and between steps, by rollouts and for training images.
        monitored: Latents evaluated by `RetentionMonitor`, before and between steps.
        prepared: Latents evaluated before the first step for saliency maps or textual inversion.
        search: Forwards and backwards of a search that runs between steps, for each word.
        images: Images that the measurement generates, of each model.
        measured: Latents that the measurement evaluates.
    """

    held: MemoryFootprint
    steps: int
    peaks: dict[str, int]
    evaluations: dict[str, dict[str, int]]
    sampled: int
    monitored: int
    prepared: int
    search: int
    images: int
    measured: int


class _StepRecorder(Callback):
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
        for optimizer in trainer.optimizers:
            for group in optimizer.param_groups:
                group["foreach"] = self.foreach

    def on_train_batch_start(self, trainer: Trainer, _: Any, batch: Any, batch_idx: int) -> None:
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
        self.peaks["step"] = max(self.peaks["step"], self.memory.restart())
        if (batch_idx + 1) % trainer.accumulate_grad_batches and not trainer.is_last_batch:
            return
        self.counts.append(_total(self.counters))
        last = cast(Any, trainer).datamodule.training_steps - 1
        if trainer.global_step > last or len(self.counts) > self.kinds:
            trainer.should_stop = True
        jump_to_step(trainer, max(trainer.global_step, last + 1 - self.kinds))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
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


def forecast_fit(
    module: ErasureModule,
    data: PromptData,
    callbacks: Sequence[Callback] = (),
    measure: bool = True,
    accelerator: str = "cpu",
    **trainer: Any,
) -> FitForecast:
    """Run the first and the last step of a fit on fake tensors.

    Args:
        module: The method; consumed (its weights become fake tensors).
        data: Its prompts.
        callbacks: Callbacks of the trainer; all but retention callbacks and `RetentionMonitor`
            are ignored.
        measure: Whether the edit is measured at the end.
        accelerator: The planned accelerator. On all but ``cpu`` an optimizer of PyTorch updates all
            weights at once, which takes as much memory again.
        trainer: Further arguments of the trainer.

    Raises:
        ErasureError: If the trainer's arguments allow no step.
    """
    memory = MemoryTracker()
    backbone = make_fake(module, memory)
    in_eight_bits = getattr(module, "optimizer", "") == "adam8bit"
    if isinstance(module, GradientErasure):
        module.optimizer = "adam"  # whose state has the same number of entries
    # bitsandbytes updates one tensor after the other.
    recorder = _StepRecorder(memory, accelerator != "cpu" and not in_eight_bits, in_eight_bits)
    with memory, RepeatedBlocks(memory).replaced([backbone.denoiser, backbone.text_encoders]):
        _fit(module, data, recorder, callbacks, trainer)
        steps = data.training_steps if recorder.held.trained else 1
        sampled = recorder.sampled(steps)
        peaks = recorder.all_peaks()
        images, measured, peaks["measuring"] = (
            _measurement(module, data, recorder.counters, memory) if measure else (0, 0, 0)
        )
    return FitForecast(
        held=recorder.held,
        steps=steps,
        peaks=_without_freed(peaks, recorder.held),
        evaluations=recorder.evaluations,
        sampled=sampled,
        monitored=sum(monitor.evaluations(steps) for monitor in recorder.monitors),
        prepared=recorder.prepared,
        search=recorder.search.evaluations if recorder.search else 0,
        images=images,
        measured=measured,
    )


def _without_freed(peaks: Mapping[str, int], held: MemoryFootprint) -> dict[str, int]:
    """Peaks without what is smaller, or not on the device, than on fake tensors."""
    # Phases in which the optimizer's state is allocated.
    in_eight_bits = ("step", "monitoring", "measuring")
    offloaded = ("sampling", *in_eight_bits)  # phases without the text encoders
    freed = {
        name: held.spared * (name in in_eight_bits) + held.weights.offloaded * (name in offloaded)
        for name in peaks
    }
    return {name: peak - freed[name] if peak else 0 for name, peak in peaks.items()}


def _fit(
    module: ErasureModule,
    data: PromptData,
    recorder: _StepRecorder,
    callbacks: Sequence[Callback],
    arguments: dict[str, Any],
) -> None:
    """Run the training, with further arguments of the trainer."""
    retention = [callback for callback in callbacks if isinstance(callback, RetentionCallback)]
    recorder.monitors = [
        MonitorCounter(callback, recorder.memory)
        for callback in callbacks
        if isinstance(callback, RetentionMonitor)
    ]
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        log_every_n_steps=1,
        callbacks=[*retention, *recorder.monitors, recorder],
        **arguments,
    )
    keep_signal_handlers(trainer)
    module.configure_model()
    make_adapters_fake(module, recorder.memory)
    recorder.memory.restart()  # it is loaded on the CPU
    recorder.counters = counters_of(module, recorder.memory)
    for monitor in recorder.monitors:
        monitor.counters = recorder.counters
    if isinstance(module, GradientErasure):
        _shorten_loops(module, recorder)
    trainer.fit(module, data)
    if not recorder.counts:
        raise ErasureError("A plan needs at least one step; found --trainer.max_steps 0.")


def _shorten_loops(module: GradientErasure, recorder: _StepRecorder) -> None:
    """Run few evaluations of every loop between and within steps, and count the others."""
    if isinstance(bank := module.latents, TrajectoryBank):
        recorder.rollouts = RolloutCounter(bank, len(module.concepts), recorder.counters)
    if isinstance(adversary := module.adversary, InversionAdversary):
        recorder.search = WordSearch(adversary, recorder.counters)
    elif adversary is not None:
        RepeatedSteps(adversary, "search_step", recorder.counters, recorder.rollouts)
    if module.repeated_call:
        RepeatedSteps(module, module.repeated_call, recorder.counters, recorder.rollouts)
    recorder.kinds += module.alternates
    if isinstance(module, FMN):
        recorder.prepared = shorten_inversion(module)
    if isinstance(module, SalientErasure):
        shorten_maps(module, recorder.counters)


@torch.no_grad()
def _measurement(
    module: ErasureModule,
    data: PromptData,
    counters: Sequence[DenoiserCounter],
    memory: MemoryTracker,
) -> tuple[int, int, int]:
    """Images of each model, evaluated latents of both, and peak memory in bytes."""
    loader = data.test_dataloader()
    for counter in counters:
        counter.sampling_peak = 0
    before = sum(counter.sampled for counter in counters)
    memory.restart()
    first = loader.batches[0]  # the others have its settings
    for model in (module.original, module.backbone):
        sample_batch(model, first)
    peak = max(memory.restart(), *(counter.sampling_peak for counter in counters))
    evaluations = sum(counter.sampled for counter in counters) - before
    images = len(loader.requests)
    return images, evaluations * images // len(first.requests), peak
