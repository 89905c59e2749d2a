"""Replacements of a fit's parts that count denoiser evaluations, and run few of them."""

import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from erasure_lightning.backbones.base import Backbone
from erasure_lightning.backbones.conditioning import Conditioning
from erasure_lightning.methods.fmn import FMN
from erasure_lightning.planning.memory_tracker import MemoryTracker
from erasure_lightning.retention.monitor import RetentionMonitor
from erasure_lightning.training.adversary import AdversaryModels
from erasure_lightning.training.adversary_kinds import InversionAdversary
from erasure_lightning.training.base import ErasureModule
from erasure_lightning.training.latent_sources import SourceModels
from erasure_lightning.training.saliency import SalientErasure
from erasure_lightning.training.trajectory_bank import TrajectoryBank

#: Key of the evaluations of the trained model in `forecast.FitForecast.evaluations`.
STUDENT_CALLS = "student"

#: Key of the evaluations of the frozen original in `forecast.FitForecast.evaluations`.
TEACHER_CALLS = "teacher"

#: Calls of a loop that `RepeatedSteps` runs.
_RUN_CALLS = 2


class DenoiserCounter:
    """Replaces a backbone's ``denoise``: counts latents and records the peak memory of sampling.

    A sampler's evaluation is run once for each shape, and each set of hooks that read it; its peak
    is reused for the others.

    Args:
        backbone: The model; its ``denoise`` is replaced.
        role: `STUDENT_CALLS` or `TEACHER_CALLS`.
        memory: The tracker that is active during the fit.
    """

    def __init__(self, backbone: Backbone, role: str, memory: MemoryTracker) -> None:
        self.role = role
        self.memory = memory
        self.counts: Counter[str] = Counter()
        self.sampled = 0
        self.sampling_peak = 0
        self._denoise = backbone.denoise
        self._modules = list(backbone.denoiser.modules())
        self._increase: dict[Any, int] = {}
        backbone.denoise = self  # type: ignore[method-assign]

    def __call__(
        self, x: Tensor, t: Tensor, conditioning: Conditioning, guidance: float | None = None
    ) -> Tensor:
        """The prediction; arguments as of `Backbone.denoise`.

        Samplers are recognised by their single time for all latents.
        """
        if t.dim():
            prediction = self._denoise(x, t, conditioning, guidance)
            self.counts[self.role] += len(x)
            self.counts["backwards"] += len(x) if prediction.requires_grad else 0
            return prediction
        self.sampled += len(x)
        hooks = tuple(number for module in self._modules for number in module._forward_hooks)
        key = (x.shape, conditioning.tokens.shape, hooks)
        before = self.memory.live
        peak = self.memory.restart()
        if key not in self._increase:
            self._denoise(x, t, conditioning, guidance)
            self._increase[key] = self.memory.peak - before
        self.sampling_peak = max(self.sampling_peak, before + self._increase[key])
        self.memory.peak = max(peak, self.memory.live)
        return torch.empty_like(x)


def counters_of(module: ErasureModule, memory: MemoryTracker) -> list[DenoiserCounter]:
    """A counter for each model of a module."""
    counters = []
    for model in module.children():
        if isinstance(model, Backbone):
            role = STUDENT_CALLS if model is module.backbone else TEACHER_CALLS
            counters.append(DenoiserCounter(model, role, memory))
    return counters


class RolloutCounter:
    """Replaces a bank's ``update``, and counts what its rollouts evaluate.

    Args:
        bank: The source of latents.
        concepts: Number of the method's concepts.
        counters: Counters of the denoisers' evaluations.
    """

    def __init__(
        self, bank: TrajectoryBank, concepts: int, counters: Sequence[DenoiserCounter]
    ) -> None:
        self.counters = counters
        self.draws = 0
        #: Draws of steps that are counted and not run.
        self.skipped = 0
        self.each = 0
        self._expected = partial(bank.rollouts, concepts=concepts)
        self._update = bank.update
        bank.update = self  # type: ignore[method-assign]

    def __call__(self, models: SourceModels) -> None:
        """Rolls out if it is due; argument as of `TrajectoryBank.update`."""
        before = sum(counter.sampled for counter in self.counters)
        self._update(models)
        self.draws += 1
        self.each = max(self.each, sum(counter.sampled for counter in self.counters) - before)

    def later(self, run: int, steps: int) -> int:
        """Latents that rollouts evaluate in the steps that are not run.

        Args:
            run: Number of steps that were run.
            steps: Steps of the fit.
        """
        draws = self.draws + self.skipped
        rollouts = self._expected(draws * steps // run) - self._expected(self.draws)
        return self.each * max(rollouts, 0)


def shorten_inversion(method: FMN) -> int:
    """Leave one step of a method's textual inversion; returns what the others evaluate."""
    steps = method.inversion_steps
    method.inversion_steps = min(steps, 1)
    return (steps - method.inversion_steps) * method.inversion_batch * len(method.concepts)


def shorten_maps(method: SalientErasure, counters: Sequence[DenoiserCounter]) -> None:
    """Run one batch of each of a method's saliency maps, and count the others.

    Batches are differentiated one after the other, so that one takes as much memory as all.
    """
    gradients = method.gradients

    def of_one(loss: Callable[[Any], Tensor], batches: Sequence[Any]) -> dict[str, Tensor]:
        before = [counter.counts.copy() for counter in counters]
        one = gradients(loss, batches[:1])
        for counter, old in zip(counters, before, strict=True):
            for key, count in (counter.counts - old).items():
                counter.counts[key] = old[key] + len(batches) * count
        return one

    method.gradients = of_one  # type: ignore[method-assign]


class MonitorCounter(Callback):
    """Generates a `RetentionMonitor`'s images, without its scorer, and counts all measurements.

    Args:
        monitor: The callback, in whose place this one is.
        memory: The tracker that is active during the fit.
    """

    def __init__(self, monitor: RetentionMonitor, memory: MemoryTracker) -> None:
        self.monitor = monitor
        self.memory = memory
        self.counters: Sequence[DenoiserCounter] = []
        self.each = 0
        #: Peak memory of a measurement, in bytes.
        self.peak = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Generates the original's images."""
        module = cast(ErasureModule, pl_module)
        self.monitor.choose_prompts(module)
        self._generate(module.original)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Generates the edited model's images, as if each step that is run were measured."""
        self._generate(cast(ErasureModule, pl_module).backbone)

    @torch.no_grad()
    def _generate(self, backbone: Backbone) -> None:
        before = [(counter.sampled, counter.sampling_peak) for counter in self.counters]
        for counter in self.counters:
            counter.sampling_peak = 0
        peak = self.memory.restart()
        self.monitor.images(backbone)
        peaks = [self.memory.peak, *(counter.sampling_peak for counter in self.counters)]
        self.peak = max(self.peak, *peaks)
        self.each = sum(counter.sampled for counter in self.counters) - sum(n for n, _ in before)
        for counter, (sampled, sampling_peak) in zip(self.counters, before, strict=True):
            counter.sampled = sampled
            counter.sampling_peak = sampling_peak
        self.memory.peak = max(peak, self.memory.live)

    def evaluations(self, steps: int) -> int:
        """Latents that are evaluated in a fit of some steps, unless the monitor stops it."""
        return self.each * (1 + steps // self.monitor.every)


class RepeatedSteps:
    """Replaces a function that a step calls in a loop: runs few calls, and counts the others.

    Two calls of each loop are run; an optimizer's state is there in the second, as in all later
    ones.

    Args:
        owner: The object whose method is replaced.
        name: Name of the method; its first argument is one object in each loop.
        counters: Counters of the denoisers' evaluations.
        rollouts: Counter of the draws of latents, if these are counted.
    """

    def __init__(
        self,
        owner: Any,
        name: str,
        counters: Sequence[DenoiserCounter],
        rollouts: RolloutCounter | None,
    ) -> None:
        self.counters = counters
        self.rollouts = rollouts
        self._run = getattr(owner, name)
        self._loop: Callable[[], Any] = lambda: None
        self._calls = 0
        #: Evaluations of each counter, and draws, in the call that was run last.
        self._evaluated: list[Counter[str]] = []
        self._drawn = 0
        setattr(owner, name, self)

    def __call__(self, loop: Any, *args: Any) -> None:
        """Runs or counts a call; arguments are those of the method."""
        if self._loop() is not loop:
            self._loop = weakref.ref(loop)
            self._calls = 0
        self._calls += 1
        if self._calls <= _RUN_CALLS:
            before = [each.counts.copy() for each in self.counters]
            draws = self._draws()
            self._run(loop, *args)
            pairs = zip(self.counters, before, strict=True)
            self._evaluated = [each.counts - old for each, old in pairs]
            self._drawn = self._draws() - draws
            return
        for counter, evaluated in zip(self.counters, self._evaluated, strict=True):
            counter.counts += evaluated
        if self.rollouts:
            self.rollouts.skipped += self._drawn

    def _draws(self) -> int:
        return self.rollouts.draws if self.rollouts else 0


class WordSearch:
    """Replaces an adversary's ``learn``: runs one step of a search for words, and counts none.

    Args:
        adversary: The adversary, which learns words between steps.
        counters: Counters of the denoisers' evaluations.
    """

    def __init__(self, adversary: InversionAdversary, counters: Sequence[DenoiserCounter]) -> None:
        self.counters = counters
        self.evaluations = adversary.starts * adversary.steps
        self._learn = adversary.learn
        adversary.steps = min(adversary.steps, 1)
        adversary.starts = 1
        adversary.learn = self  # type: ignore[method-assign]

    def __call__(self, count: int, number: int, models: AdversaryModels) -> None:
        """Arguments as of `InversionAdversary.learn`."""
        before = [(counter.counts.copy(), counter.sampled) for counter in self.counters]
        self._learn(count, number, models)
        for counter, (counts, sampled) in zip(self.counters, before, strict=True):
            counter.counts = counts
            counter.sampled = sampled
