"""What a fit needs, found out before it runs: its first and its last step, played with tensors that
have no values.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from erasure_lightning.backbones.base import Backbone
from erasure_lightning.backbones.conditioning import Conditioning
from erasure_lightning.backbones.loading import load_backbone
from erasure_lightning.data.datamodule import PromptData
from erasure_lightning.distributed.lightning_internals import jump_to_step
from erasure_lightning.errors import ErasureError
from erasure_lightning.planning.memory_footprint import MemoryFootprint, footprint_of
from erasure_lightning.planning.memory_tracker import MemoryTracker, shapes, without_values
from erasure_lightning.retention.base import RetentionCallback
from erasure_lightning.training.base import ErasureModule
from erasure_lightning.training.gradient import GradientErasure
from erasure_lightning.training.saliency import SalientErasure

#: Who is asked: the model in training, or a frozen one.
STUDENT, TEACHER = "student", "teacher"


@dataclass(frozen=True)
class Forecast:
    """What a fit needs on one device, in bytes, and what it asks.

    Args:
        held: What it keeps there.
        steps: Of the optimizer.
        peaks: The most bytes alive while it prepares, samples (a bank, pictures to train on),
            steps, and measures.
        asked: Latents that student and teacher are asked about in a step (the last, and the first,
            which fills a bank), and backwards.
        sampled: Latents denoised before and between steps, for rollouts and pictures.
        pictures: That the measurement draws, of either model.
        measured: Latents that it asks about.
    """

    held: MemoryFootprint
    steps: int
    peaks: dict[str, int]
    asked: dict[str, dict[str, int]]
    sampled: int
    pictures: int
    measured: int

    def plain(self) -> dict[str, Any]:
        """As JSON says it."""
        return asdict(self)


class Listener:
    """Stands before a model's denoiser and counts; what sampling asks again and again is answered
    from memory.

    Args:
        backbone: The model.
        who: Its part in training.
        ledger: The account.
    """

    def __init__(self, backbone: Backbone, who: str, ledger: MemoryTracker) -> None:
        self.who, self.ledger = who, ledger
        self.asked: dict[str, int] = {}
        self.sampled = self.sampling = 0
        self._denoise = backbone.denoise
        self._seen: dict[Any, int] = {}
        backbone.denoise = self  # type: ignore[method-assign]

    def __call__(
        self, x: Tensor, t: Tensor, conditioning: Conditioning, guidance: float | None = None
    ) -> Tensor:
        """The prediction of `Backbone.denoise`; only samplers give one time for all latents."""
        if t.dim():
            prediction = self._denoise(x, t, conditioning, guidance)
            self._count(self.who, len(x))
            self._count("backwards", len(x) if prediction.requires_grad else 0)
            return prediction
        self.sampled += len(x)
        key = (x.shape, conditioning.tokens.shape)
        before, peak = self.ledger.live, self.ledger.restart()
        if key not in self._seen:
            self._denoise(x, t, conditioning, guidance)
            self._seen[key] = self.ledger.peak - before
        self.sampling = max(self.sampling, before + self._seen[key])
        self.ledger.peak = max(peak, self.ledger.live)
        return torch.empty_like(x)

    def _count(self, what: str, latents: int) -> None:
        self.asked[what] = self.asked.get(what, 0) + latents


class _Player(Callback):
    """Marks where steps begin and end, and jumps from the first to the last; optimizers step as on
    the device.
    """

    def __init__(self, ledger: MemoryTracker, together: bool, in_eight_bits: bool) -> None:
        self.ledger, self.together, self.in_eight_bits = ledger, together, in_eight_bits
        self.listeners: Sequence[Listener] = []
        self.peaks = {"preparing": 0, "step": 0}
        self.asked: list[dict[str, int]] = []

    def on_train_start(self, trainer: Trainer, *_: Any) -> None:
        for group in [
            group for optimizer in trainer.optimizers for group in optimizer.param_groups
        ]:
            group["foreach"] = self.together

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        self.peaks["preparing"] = max(
            self.peaks["preparing"], 0 if self.asked else self.ledger.restart()
        )
        self.ledger.restart()
        for listener in self.listeners:
            listener.asked = {}

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self.peaks["step"] = max(self.peaks["step"], self.ledger.restart())
        self.asked.append(_added(listener.asked for listener in self.listeners))
        last = cast(Any, trainer).datamodule.training_steps - 1
        trainer.should_stop = (
            trainer.should_stop or trainer.global_step > last or len(self.asked) > 1
        )
        jump_to_step(trainer, max(trainer.global_step, last))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.held = footprint_of(cast(ErasureModule, pl_module), self.in_eight_bits)


def _added(counts: Iterable[dict[str, int]]) -> dict[str, int]:
    total = {STUDENT: 0, TEACHER: 0, "backwards": 0}
    for count in counts:
        for what, latents in count.items():
            total[what] += latents
    return total


def forecast(
    module: ErasureModule,
    data: PromptData,
    callbacks: Sequence[Callback] = (),
    measure: bool = True,
    accelerator: str = "cpu",
    **trainer: Any,
) -> Forecast:
    """Play a fit.

    Args:
        module: The method; afterwards it is good for nothing else.
        data: Its prompts.
        callbacks: Of the trainer; those that retain are played, others are left out.
        measure: Whether the edit is measured at the end.
        accelerator: What is planned for. On others than ``cpu`` an optimizer moves all weights at
            once, and needs room for as much again while it does.
        trainer: Further arguments of the trainer.

    Raises:
        ErasureError: If no step is asked for.
    """
    ledger = MemoryTracker()
    _without_values(module, ledger)
    eight = isinstance(module, GradientErasure) and module.optimizer == "adam8bit"
    if isinstance(module, GradientErasure):
        module.optimizer = "adam"  # whose state has the same number of entries
    player = _Player(ledger, accelerator != "cpu", eight)
    with ledger:
        _fit(module, data, player, callbacks, trainer)
        walked = max(listener.sampling for listener in player.listeners)
        sampled = sum(listener.sampled for listener in player.listeners)
        pictures, measured, drawing = (
            _measurement(module, data, player.listeners, ledger) if measure else (0, 0, 0)
        )
    peaks, late = {**player.peaks, "sampling": walked, "measuring": drawing}, ("step", "measuring")
    return Forecast(
        held=player.held,
        steps=data.training_steps if player.held.trained else 1,
        peaks={
            name: peak and peak - player.held.spared * (name in late)
            for name, peak in peaks.items()
        },
        asked={"first": player.asked[0], "last": player.asked[-1]},
        sampled=sampled,
        pictures=pictures,
        measured=measured,
    )


def _fit(
    module: ErasureModule,
    data: PromptData,
    player: _Player,
    callbacks: Sequence[Callback],
    given: dict[str, Any],
) -> None:
    """Play the training, with the arguments given to the trainer."""
    retained = [callback for callback in callbacks if isinstance(callback, RetentionCallback)]
    trainer = Trainer(
        accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, limit_val_batches=0, log_every_n_steps=1, callbacks=[*retained, player], **given,
    )  # fmt: skip
    module.configure_model()
    player.listeners = _listen(module, player.ledger)
    trainer.fit(module, data)
    if not player.asked:
        raise ErasureError(
            "A plan plays a step at least; found --trainer.max_steps 0, which asks for none."
        )


def _without_values(module: ErasureModule, ledger: MemoryTracker) -> None:
    """Give a module a backbone of shapes alone, that no one moves or reads."""
    (given,) = module._given
    mode = shapes()
    if isinstance(given, str):
        with mode:
            given = load_backbone(given, weights="none")
    backbone = cast(Any, given)
    without_values(backbone, torch.bfloat16 if module.base == "bfloat16" else torch.float32, mode)
    backbone.fingerprint = lambda dtype=None: ""
    backbone.fingerprints = lambda names: {}
    backbone.to = lambda *_: backbone
    cast(Any, module)._given = (backbone,)
    cast(Any, module)._apply = lambda *_, **__: module
    ledger.hold([*backbone.parameters(), *backbone.buffers()])
    if isinstance(
        module, SalientErasure
    ):  # one loss needs as much memory as a hundred, one after the other
        slopes = module.slopes
        cast(Any, module).slopes = lambda losses: slopes([next(iter(losses))])


def _listen(module: ErasureModule, ledger: MemoryTracker) -> list[Listener]:
    models = [part for part in module.children() if isinstance(part, Backbone)]
    return [
        Listener(model, STUDENT if model is module.backbone else TEACHER, ledger)
        for model in models
    ]


@torch.no_grad()
def _measurement(
    module: ErasureModule, data: PromptData, listeners: Sequence[Listener], ledger: MemoryTracker
) -> tuple[int, int, int]:
    """How many pictures of either model, how many latents that asks about, and the most bytes it
    takes.
    """
    batches = list(data.test_dataloader())
    each = [len(batch.shots) * batch.steps * (2 if batch.guidance > 1 else 1) for batch in batches]
    for listener in listeners:
        listener.sampling = 0
    ledger.restart()
    for model in (module.original, module.backbone):
        module._draw(
            model, batches[0]._replace(shots=[s._replace(steps=1) for s in batches[0].shots])
        )
    peak = max(ledger.restart(), *(listener.sampling for listener in listeners))
    return sum(len(batch.shots) for batch in batches), 2 * sum(each), peak
