"""Forecast of the memory and denoiser evaluations of a fit, from steps on fake tensors."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from fractions import Fraction
from typing import Any

import torch
from lightning import Trainer
from lightning.pytorch.callbacks import Callback

from erasure_lightning.data.datamodule import PromptData
from erasure_lightning.distributed.lightning_internals import keep_signal_handlers
from erasure_lightning.errors import ErasureError
from erasure_lightning.methods.fmn import FMN
from erasure_lightning.planning.evaluation_counters import (
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
from erasure_lightning.planning.memory_footprint import MemoryFootprint
from erasure_lightning.planning.memory_tracker import MemoryTracker
from erasure_lightning.planning.repeated_blocks import RepeatedBlocks
from erasure_lightning.planning.step_recorder import StepRecorder
from erasure_lightning.retention.base import RetentionCallback
from erasure_lightning.retention.monitor import RetentionMonitor
from erasure_lightning.training.adversary_kinds import InversionAdversary
from erasure_lightning.training.base import ErasureModule
from erasure_lightning.training.batch_sampling import sample_batch
from erasure_lightning.training.gradient import GradientErasure
from erasure_lightning.training.saliency import SalientErasure
from erasure_lightning.training.trajectory_bank import TrajectoryBank

#: The most prompts of a step that is run: each is drawn and encoded on its own.
LARGEST_BATCH = 4096


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


def forecast_fit(
    module: ErasureModule,
    data: PromptData,
    callbacks: Sequence[Callback] = (),
    measure: bool = True,
    accelerator: str = "cpu",
    **trainer: Any,
) -> FitForecast:
    """Run the first and the last step of a fit on fake tensors.

    A step of more than `LARGEST_BATCH` prompts is extrapolated from two smaller ones.

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
    if data.batch_size <= LARGEST_BATCH:
        return _forecast(module, data, callbacks, measure, accelerator, trainer)
    sizes = LARGEST_BATCH // 2, LARGEST_BATCH
    forecasts = []
    for size in sizes:
        smaller = copy.deepcopy((module, data, callbacks))
        smaller[1].batch_size = size
        forecasts.append(_forecast(*smaller, measure, accelerator, trainer))
    low, high = forecasts
    return _extrapolated(low, high, Fraction(data.batch_size - sizes[1], sizes[1] - sizes[0]))


def _extrapolated(low: FitForecast, high: FitForecast, share: Fraction) -> FitForecast:
    """The forecast of a larger batch, whose numbers are on a line with those of two smaller ones.

    Args:
        low: The forecast of the smallest batch.
        high: The forecast of a larger one.
        share: The distance of the largest batch to the latter, as a share of that between both.
    """

    def line(low: Any, high: Any) -> Any:
        if isinstance(low, dict):
            return {key: line(low[key], high[key]) for key in low}
        return high + int((high - low) * share)

    numbers = [field.name for field in fields(FitForecast) if field.name != "held"]
    return replace(
        high, **{name: line(getattr(low, name), getattr(high, name)) for name in numbers}
    )


def _forecast(
    module: ErasureModule,
    data: PromptData,
    callbacks: Sequence[Callback],
    measure: bool,
    accelerator: str,
    arguments: dict[str, Any],
) -> FitForecast:
    """Run the steps of a fit; arguments as of `forecast_fit`, those of the trainer in a dict."""
    memory = MemoryTracker()
    backbone = make_fake(module, memory)
    recorder = _recorder(module, memory, accelerator)
    trainer = _trainer(recorder, callbacks, arguments)
    with memory, RepeatedBlocks(memory).replaced([backbone.denoiser, backbone.text_encoders]):
        _fit(module, data, recorder, trainer)
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


def _recorder(module: ErasureModule, memory: MemoryTracker, accelerator: str) -> StepRecorder:
    """A recorder for the method's optimizer, in whose place PyTorch's Adam runs."""
    in_eight_bits = getattr(module, "optimizer", "") == "adam8bit"
    if isinstance(module, GradientErasure):
        module.optimizer = "adam"  # whose state has the same number of entries
    # bitsandbytes updates one tensor after the other.
    return StepRecorder(memory, accelerator != "cpu" and not in_eight_bits, in_eight_bits)


def _trainer(
    recorder: StepRecorder, callbacks: Sequence[Callback], arguments: dict[str, Any]
) -> Trainer:
    """A trainer with the retention callbacks, and with the recorder and its monitors."""
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
    return trainer


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


def _fit(module: ErasureModule, data: PromptData, recorder: StepRecorder, trainer: Trainer) -> None:
    """Run the training.

    Raises:
        ErasureError: If no step was run.
    """
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


def _shorten_loops(module: GradientErasure, recorder: StepRecorder) -> None:
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
