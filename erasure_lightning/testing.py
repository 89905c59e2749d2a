"""The contract of every method, checked by one function that plugins' tests call too."""

import warnings
from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import cache
from pathlib import Path
from pkgutil import resolve_name
from tempfile import TemporaryDirectory
from typing import Any, cast

import torch
from lightning import Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from erasure_lightning.backbones.base import Backbone
from erasure_lightning.backbones.tiny import TINY_BACKBONES
from erasure_lightning.concepts.concept import Concept
from erasure_lightning.concepts.worlds import installed_world
from erasure_lightning.data.datamodule import PromptData
from erasure_lightning.errors import ErasureError
from erasure_lightning.retention import RETENTION_CALLBACKS
from erasure_lightning.retention.base import RetentionCallback
from erasure_lightning.training.base import ErasureModule
from erasure_lightning.training.edit_state import BACKBONE_PREFIX
from erasure_lightning.training.gradient import GradientErasure

_Maker = Callable[..., ErasureModule]  # from further arguments


def check_method(
    method: type[ErasureModule],
    *,
    steps: int = 2,
    world: str | None = "emoji-world",
    thorough: bool = True,
    families: Sequence[type[Backbone]] = TINY_BACKBONES,
    **arguments: Any,
) -> ErasureModule:
    """Fit a method on a tiny model of every family, and check the contract of every method.

    Some weights change, and none outside `editable`; all are finite; everything that is trained has
    a gradient in every step; one seed gives one edit; an edit that is saved and loaded is the same
    edit; a run that is stopped half-way and resumed ends bit-identical to one that was not stopped
    (on one family for each noise process). A family without a capability that the method `needs` is
    refused before training. If ``thorough``, also: every retention callback works with it on a base
    in bfloat16, and so do the trainer's bfloat16 precisions on the first family that suits; on a
    trained world, if it is installed, predictions for the concepts change more than others.

    Args:
        method: The class.
        steps: Training steps, an even number of at least 2; closed forms stop after one by
            themselves.
        world: Name of the trained world; ``None`` for no check on it.
        thorough: Whether all is checked; for a variant, fits and a resume on one family are enough.
        families: Classes of tiny models, of which at least one suits the method.
        arguments: Arguments of its constructor, without ``concepts``, ``backbone`` and ``seed``.

    Returns:
        The module fitted on the first family that suits it, for the method's own claims.

    Raises:
        AssertionError: If a check fails; the message names it.
    """
    suitable = [family for family in families if method.needs <= family.capabilities]
    assert suitable, f"{method.__name__} suits no family of {[f.__name__ for f in families]}"
    for family in set(families) - set(suitable):
        _check_refusal(_maker(method, family, arguments)(), family)
    makers = [_maker(method, family, arguments) for family in suitable]
    with TemporaryDirectory() as folder:
        halves = [Path(folder, f"{family.__name__}.ckpt") for family in suitable]
        fitted = [_check_fit(*each, steps) for each in zip(makers, suitable, halves, strict=True)]
        # The first half once more, by a run that stops there; elsewhere what the whole one saved.
        quick_fit(makers[0](), steps // 2, total=steps, save=halves[0])
        each = [*zip(fitted, makers, halves, strict=True)]
        # Families draw times and noise as their process does.
        by_process = {type(one[0].backbone.process): one for one in reversed(each)}
        for one in by_process.values() if thorough else each[:1]:
            _check_resumed(*one, steps)
    if not thorough:
        return fitted[0]
    for make, family in zip(makers, suitable, strict=True):
        _check_retention(make(base_dtype="bfloat16"), family)
    for precision in ("bf16-mixed", "bf16-true"):
        _check_edit(quick_fit(makers[0](), 1, precision=precision), suitable[0], precision)
    if world and installed_world(world):
        arguments = deepcopy(arguments)
        _check_aim(method(concepts=_ERASED, backbone=world, seed=1, **arguments), steps)
    return fitted[0]


def _check_fit(make: _Maker, family: type[Backbone], half: Path, steps: int) -> ErasureModule:
    """Fit on a family; what is editable changed, and all that is trained had a gradient."""
    gradients = _Gradients()
    whole = half.with_suffix(".whole.ckpt")
    fitted = quick_fit(make(), steps, gradients, _SaveAt(steps // 2, half), save=whole)
    _check_edit(fitted, family)
    name = f"{type(fitted).__name__} on {family.__name__}"
    assert not gradients.lacking, f"{name} trains {gradients.lacking[0]} without a gradient"
    same = _equal(edit_of(fitted), edit_of(_load(make(), whole)))
    assert same, f"{name} loads another edit than it saved"
    return fitted


def _check_resumed(fitted: ErasureModule, make: _Maker, half: Path, steps: int) -> None:
    """One seed gives one edit, also to a run that is stopped and resumed."""
    name = f"{type(fitted).__name__} on {type(fitted.backbone).__name__}"
    edit = edit_of(fitted)
    resumed = edit_of(quick_fit(make(), steps, resume=half))
    if not _equal(edit, resumed):  # both runs have one seed: which promise is broken?
        again = _equal(edit, edit_of(quick_fit(make(), steps)))
        broken = "ends elsewhere when resumed" if again else "gives two edits for one seed"
        raise AssertionError(f"{name} {broken}")


def _check_refusal(module: ErasureModule, family: type[Backbone]) -> None:
    missing = module.needs - family.capabilities
    try:
        module.configure_model()
    except ErasureError as error:
        unnamed = [c for c in missing if c not in str(error)]
        assert not unnamed, f"{type(module).__name__} refuses {family.__name__} without {unnamed}"
        return
    lacking = f"{family.__name__}, which lacks {sorted(missing)}"
    raise AssertionError(f"{type(module).__name__} does not refuse {lacking}")


class _Gradients(Callback):
    """Collects the trained parameters that had no gradient in some step, which DDP must know."""

    def __init__(self) -> None:
        self.lacking: list[str] = []

    def on_after_backward(self, trainer: Trainer, pl_module: Any) -> None:
        if not pl_module.has_unused:
            self.lacking += [n for n, p in pl_module.trainable().items() if p.grad is None]


#: What is erased from the world, and what is retained.
_ERASED = [Concept("cigarette", "lollipop"), Concept("skull", "balloon")]
_RETAINED = ["a dog", "a guitar", "a fox", "a rocket"]


def _retention_callbacks() -> list[type[RetentionCallback]]:
    """Every retention callback of ours."""
    classes = [resolve_name(line.target) for line in RETENTION_CALLBACKS.values()]
    return sorted((c for c in classes if issubclass(c, RetentionCallback)), key=lambda c: c.name)


def _check_retention(module: ErasureModule, family: type[Backbone]) -> None:
    """Every retention callback adds its term, on a base in bfloat16; the edit stays float32."""
    callbacks = [cls() for cls in _retention_callbacks()]
    for callback in callbacks:
        prompts = callback.prompts or ["a tree", "a car", "a boat"]
        vars(callback).update(prompts=prompts, batch_size=2)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*edits no text encoder.*")
        quick_fit(module, 1 + getattr(module, "alternates", False), *callbacks, log_every_n_steps=1)
    _check_edit(module, family, "every retention callback and a bfloat16 base")
    _check_precision(module)
    if not isinstance(module, GradientErasure):
        return
    logged = module.trainer.callback_metrics
    missing = {callback.name for callback in callbacks if f"loss/{callback.name}" not in logged}
    assert not missing, f"{type(module).__name__} leaves out the terms of {missing}"


def _check_aim(module: ErasureModule, steps: int) -> None:
    quick_fit(module, steps)
    own = _moved(module, [f"a {concept.name}" for concept in module.concepts])
    rest = _moved(module, _RETAINED)
    name = type(module).__name__
    assert own > rest, f"{name} moves other things ({rest:.2g}) more than its concepts ({own:.2g})"


@torch.no_grad()
def _moved(module: ErasureModule, prompts: list[str]) -> float:
    """Mean squared change of the predictions for prompts, from noise, over the range of times."""
    shares = torch.linspace(0.2, 0.95, 4).repeat_interleave(len(prompts))
    x = module.backbone.noise(range(4)).repeat_interleave(len(prompts), 0)
    edited, original = (
        model.denoise(x, model.process.at(shares), model.encode(prompts).repeat(4))
        for model in (module.backbone, module.original)
    )
    return (edited - original).square().mean().item()


def _maker(
    method: type[ErasureModule], family: type[Backbone], arguments: dict[str, Any]
) -> _Maker:
    concepts = [Concept("cat", "dog"), Concept("star", "heart")]
    return lambda **more: method(
        concepts=concepts, backbone=cast(Any, family)(), seed=1, **deepcopy(arguments), **more
    )


_weights = cache(lambda family, dtype: {n: p.to(dtype) for n, p in family().named_parameters()})
_QUIET = {"logger": False, "enable_checkpointing": False}
_QUIET |= {"enable_progress_bar": False, "enable_model_summary": False}


class _SaveAt(Callback):
    """Saves a run once it has so many steps, before any hook of the end, as by a kill."""

    def __init__(self, step: int, path: Path | None, *, stop: bool = False) -> None:
        self.step = step
        self.path = path
        self.stop = stop

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step >= self.step or trainer.should_stop:
            trainer.should_stop |= self.stop
            path, self.path = self.path, None  # once
            if path:
                trainer.save_checkpoint(path)


def quick_fit(
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
        callbacks: Callbacks of the trainer.
        total: Steps the schedules are planned for; ``steps`` by default.
        save: Where to write a checkpoint: at the end, or (with ``total``) where it stops.
        resume: A checkpoint to go on from.
        trainer: Further arguments of the trainer.
    """
    runner = Trainer(
        max_steps=total or steps,
        accelerator="cpu",
        limit_val_batches=0,
        callbacks=[*callbacks, _SaveAt(steps, save if total else None, stop=True)],
        **_QUIET | trainer,
    )
    runner.fit(module, PromptData(batch_size=2), ckpt_path=resume, weights_only=True)
    if save and not total:
        runner.save_checkpoint(save)
    return module


def edit_of(module: ErasureModule) -> dict[str, Tensor]:
    """A copy of what a module edits, by name."""
    return {name: value.clone() for name, value in module.edit_values().items()}


def _check_edit(module: ErasureModule, family: type[Backbone], circumstance: str = "") -> None:
    name = f"{type(module).__name__}{circumstance and f' with {circumstance}'}"
    editable = module.editable()
    before = _weights(family, module.backbone.base_dtype)
    moved = set()
    for key, parameter in module.backbone.named_parameters():
        plain = key.replace(".base_layer.", ".")
        if plain not in before or not torch.equal(parameter, before[plain].to(parameter)):
            moved.add(plain)
    assert moved, f"{name} changed nothing"
    extra = sorted(moved - {key.replace(".base_layer.", ".") for key in editable})
    assert not extra, f"{name} changed {extra[0]}, which is not editable"
    finite = all(parameter.isfinite().all() for parameter in editable.values())
    assert finite, f"{name} left a number that is not finite"
    originals = module.original.named_parameters()
    changed = {key for key, p in originals if not torch.equal(p.detach(), before[key])}
    assert not changed, f"{name} changed the frozen original"


def _check_precision(module: ErasureModule) -> None:
    name = type(module).__name__
    coarse = {key for key, p in module.editable().items() if p.dtype != torch.float32}
    assert not coarse, f"{name} edits {sorted(coarse)[0]} in less than float32"
    wide = {key for key, p in module.backbone.named_parameters() if p.dtype == torch.float32}
    unedited = wide - module.editable().keys()
    assert not unedited, f"{name} keeps {sorted(unedited)[0]} in float32, which it does not edit"


def _equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def _load(module: ErasureModule, checkpoint: Path) -> ErasureModule:
    module.configure_model()
    saved = torch.load(checkpoint, weights_only=True)
    module.on_load_checkpoint(saved)
    missing = module.load_state_dict(saved["state_dict"], strict=False).unexpected_keys
    assert not missing, f"{type(module).__name__} does not know {missing[0]} of its own checkpoint"
    is_edit = all(key.startswith(BACKBONE_PREFIX) for key in saved["state_dict"])
    assert is_edit, "a checkpoint holds more than the edit"
    return module
