"""The promises of every method as one function; plugin authors call it from their tests."""

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from lightning import Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from erasure_lightning.backbones.tiny import TinyBackbone
from erasure_lightning.concepts import Concept
from erasure_lightning.data import PromptData
from erasure_lightning.module import PREFIX, ErasureModule


def check_method(method: type[ErasureModule], *, steps: int = 4, **arguments: Any) -> ErasureModule:
    """Fit a method on `TinyBackbone` and demand what every method promises.

    Something changed; nothing outside `editable` did; all is finite; one seed gives one edit; an edit saved and loaded
    is the same edit; a run stopped half-way and resumed ends bit-identical to one that was not.

    Args:
        method: The class.
        steps: Training steps, an even number of at least 2; closed forms stop after one by themselves.
        arguments: Of its constructor, without ``concepts``, ``backbone`` and ``seed``.

    Returns:
        The fitted module, for the method's own claims.

    Raises:
        AssertionError: Naming the promise that was broken.
    """
    make = _maker(method, arguments)
    fitted = fit(make(), steps)
    _check_edit(fitted)
    again = edit_of(fit(make(), steps))
    _same(edit_of(fitted), again, f"{method.__name__} gives two edits for one seed")
    with TemporaryDirectory() as folder:
        half, whole = Path(folder, "half.ckpt"), Path(folder, "whole.ckpt")
        fit(make(), steps // 2, total=steps, save=half)
        resumed = fit(make(), steps, resume=half, save=whole)
        _same(edit_of(fitted), edit_of(resumed), f"{method.__name__} ends elsewhere when stopped and resumed")
        loaded = _load(make(), whole)
    _same(edit_of(fitted), edit_of(loaded), f"{method.__name__} loads another edit than it saved")
    return fitted


def _maker(method: type[ErasureModule], arguments: dict[str, Any]) -> Callable[[], ErasureModule]:
    concepts = [Concept("cat", "dog"), Concept("star", "heart")]
    return lambda: method(concepts=concepts, backbone=TinyBackbone(), seed=1, **deepcopy(arguments))


class _StopAt(Callback):
    """Ends a run early that was planned for longer, as a kill would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step >= self.step:
            trainer.should_stop = True


def fit(
    module: ErasureModule,
    steps: int,
    *callbacks: Callback,
    total: int | None = None,
    save: Path | None = None,
    resume: Path | None = None,
) -> ErasureModule:
    """Train quietly on the CPU.

    Args:
        module: What to train.
        steps: Where to stop.
        callbacks: Of the trainer.
        total: Steps the schedules are planned for; ``steps`` by default.
        save: Where to write a checkpoint at the end.
        resume: A checkpoint to go on from.
    """
    trainer = Trainer(
        max_steps=total or steps, accelerator="cpu", logger=False, enable_checkpointing=False, log_every_n_steps=2,
        enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0,
        callbacks=[*callbacks, _StopAt(steps)],
    )  # fmt: skip
    trainer.fit(module, PromptData(batch_size=2), ckpt_path=resume, weights_only=True)
    if save:
        trainer.save_checkpoint(save)
    return module


def edit_of(module: ErasureModule) -> dict[str, Tensor]:
    """A copy of what a module edits, by name."""
    return {name: value.detach().clone() for name, value in module.editable().items()}


def _check_edit(module: ErasureModule) -> None:
    name, editable = type(module).__name__, module.editable()
    before = dict(TinyBackbone().named_parameters())
    moved = {n for n, p in module.backbone.named_parameters() if not torch.equal(p.detach(), before[n])}
    assert moved, f"{name} changed nothing"
    assert moved <= editable.keys(), f"{name} changed {sorted(moved - editable.keys())[0]}, which is not editable"
    assert all(p.isfinite().all() for p in editable.values()), f"{name} left a number that is not finite"
    frozen = {n for n, p in module.original.named_parameters() if not torch.equal(p.detach(), before[n])}
    assert not frozen, f"{name} changed the frozen original"


def _same(a: dict[str, Tensor], b: dict[str, Tensor], broken: str) -> None:
    assert a.keys() == b.keys(), broken
    assert all(torch.equal(a[name], b[name]) for name in a), broken


def _load(module: ErasureModule, checkpoint: Path) -> ErasureModule:
    module.configure_model()
    saved = torch.load(checkpoint, weights_only=True)
    module.on_load_checkpoint(saved)
    missing = module.load_state_dict(saved["state_dict"], strict=False).unexpected_keys
    assert not missing, f"{type(module).__name__} does not know {missing[0]} of its own checkpoint"
    assert all(key.startswith(PREFIX) for key in saved["state_dict"]), "a checkpoint holds more than the edit"
    return module
