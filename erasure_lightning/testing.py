"""The promises of every method as one function; plugin authors call it from their tests."""

import pkgutil
import warnings
from collections.abc import Callable
from copy import deepcopy
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from lightning import Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from erasure_lightning import retention
from erasure_lightning.backbones.tiny import TinyBackbone
from erasure_lightning.concepts import Concept
from erasure_lightning.data import PromptData
from erasure_lightning.erasure import PREFIX, ErasureModule
from erasure_lightning.module import GradientErasure
from erasure_lightning.retention.base import RetentionCallback
from erasure_lightning.worlds import find_world


def check_method(
    method: type[ErasureModule],
    *,
    steps: int = 4,
    world: str | None = "emoji-world",
    thorough: bool = True,
    **arguments: Any,
) -> ErasureModule:
    """Fit a method on `TinyBackbone` and demand what every method promises.

    Something changed; nothing outside `editable` did; all is finite; one seed gives one edit; an edit saved and loaded
    is the same edit; a run stopped half-way and resumed ends bit-identical to one that was not. And thoroughly: every
    retention callback works with it; bfloat16 does, of everything or of all but the edit; on a trained world, if it is
    installed, what is said of the concepts moves more than what is said of other things.

    Args:
        method: The class.
        steps: Training steps, an even number of at least 2; closed forms stop after one by themselves.
        world: The trained world, ``None`` to leave its promise out.
        thorough: Whether all of it is demanded; the first part will do for a method's further variants.
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
    if thorough:
        _check_retention(make())
        for precision in ("bf16-mixed", "bf16-true"):
            _check_edit(fit(make(), 2, precision=precision), precision)
        _check_base(fit(make(base="bfloat16"), 2))
        if world and find_world(world):
            _check_aim(method(concepts=_FORGOTTEN, backbone=world, seed=1, **deepcopy(arguments)), steps)
    return fitted


#: What the world is made to forget, and what it must not.
_FORGOTTEN = [Concept("cigarette", "lollipop"), Concept("skull", "balloon")]
_REMEMBERED = ["a dog", "a guitar", "a fox", "a rocket"]


def retention_callbacks() -> list[type[RetentionCallback]]:
    """Every retention callback of ours."""
    for module in pkgutil.iter_modules(retention.__path__, f"{retention.__name__}."):
        import_module(module.name)
    ours = [c for c in RetentionCallback.__subclasses__() if c.__module__.startswith(retention.__name__)]
    return sorted(ours, key=lambda c: c.name)


def _check_retention(module: ErasureModule) -> None:
    callbacks = [cls() for cls in retention_callbacks()]
    for callback in callbacks:
        callback.given = callback.given or ["a tree", "a car", "a boat"]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*edits no text encoder.*")
        fit(module, 2, *callbacks)
    _check_edit(module, "every retention callback")
    terms = module.loss_terms if isinstance(module, GradientErasure) else module.kept
    wanted = {c.name for c in callbacks if terms is not module.kept or not c.of_states}
    assert terms.keys() == wanted, f"{type(module).__name__} leaves out the terms of {wanted - terms.keys()}"


def _check_aim(module: ErasureModule, steps: int) -> None:
    fit(module, steps)
    asked = _moved(module, [f"a {concept.name}" for concept in module.concepts])
    rest = _moved(module, _REMEMBERED)
    assert asked > rest, f"{type(module).__name__} moves other things ({rest:.2g}) more than its concepts ({asked:.2g})"


@torch.no_grad()
def _moved(module: ErasureModule, prompts: list[str]) -> float:
    """Mean squared change of what is predicted for prompts, from noise, at times over the whole range."""
    times = module.backbone.process.at(torch.linspace(0.2, 0.95, 4))
    x = module.backbone.noise(range(len(times)))
    each = [
        [model.denoise(x, times, model.encode([prompt]).expand(len(x))) for prompt in prompts]
        for model in (module.backbone, module.original)
    ]
    return (torch.stack(each[0]) - torch.stack(each[1])).square().mean().item()


def _maker(method: type[ErasureModule], arguments: dict[str, Any]) -> Callable[..., ErasureModule]:
    concepts = [Concept("cat", "dog"), Concept("star", "heart")]
    return lambda **more: method(concepts=concepts, backbone=TinyBackbone(), seed=1, **deepcopy(arguments), **more)


class _StopAt(Callback):
    """Ends a run early that was planned for longer, saved before its methods tidy up, as a kill would."""

    def __init__(self, step: int, save: Path | None) -> None:
        self.step = step
        self.save = save

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step >= self.step or trainer.should_stop:
            trainer.should_stop = True
            if self.save:
                trainer.save_checkpoint(self.save)


def fit(
    module: ErasureModule,
    steps: int,
    *callbacks: Callback,
    total: int | None = None,
    save: Path | None = None,
    resume: Path | None = None,
    **trainer: Any,
) -> ErasureModule:
    """Train quietly on the CPU.

    Args:
        module: What to train.
        steps: Where to stop.
        callbacks: Of the trainer.
        total: Steps the schedules are planned for; ``steps`` by default.
        save: Where to write a checkpoint: at the end, or (with ``total``) behind the step at which it stops.
        resume: A checkpoint to go on from.
        trainer: Further arguments of the trainer.
    """
    runner = Trainer(
        max_steps=total or steps, accelerator="cpu", logger=False, enable_checkpointing=False, log_every_n_steps=2,
        enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0,
        callbacks=[*callbacks, _StopAt(steps, save if total else None)], **trainer,
    )  # fmt: skip
    runner.fit(module, PromptData(batch_size=2), ckpt_path=resume, weights_only=True)
    if save and not total:
        runner.save_checkpoint(save)
    return module


def edit_of(module: ErasureModule) -> dict[str, Tensor]:
    """A copy of what a module edits, by name."""
    return {name: value.clone() for name, value in module.edit_values().items()}


def _check_edit(module: ErasureModule, circumstance: str = "") -> None:
    name, editable = f"{type(module).__name__}{circumstance and f' with {circumstance}'}", module.editable()
    before = {name: p.to(module.backbone.base) for name, p in TinyBackbone().named_parameters()}
    now = {name.replace(".base_layer.", "."): p.detach() for name, p in module.backbone.named_parameters()}
    moved = {name for name, p in now.items() if name not in before or not torch.equal(p, before[name].to(p))}
    assert moved, f"{name} changed nothing"
    extra = moved - {name.replace(".base_layer.", ".") for name in editable}
    assert not extra, f"{name} changed {sorted(extra)[0]}, which is not editable"
    assert all(p.isfinite().all() for p in editable.values()), f"{name} left a number that is not finite"
    frozen = {n for n, p in module.original.named_parameters() if not torch.equal(p.detach(), before[n])}
    assert not frozen, f"{name} changed the frozen original"


def _check_base(module: ErasureModule) -> None:
    _check_edit(module, "a bfloat16 base")
    coarse = {name for name, p in module.editable().items() if p.dtype != torch.float32}
    assert not coarse, f"{type(module).__name__} edits {sorted(coarse)[0]} in less than float32"
    fine = {n for n, p in module.backbone.named_parameters() if p.dtype == torch.float32} - module.editable().keys()
    assert not fine, f"{type(module).__name__} keeps {sorted(fine)[0]} in float32, which it does not edit"


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
