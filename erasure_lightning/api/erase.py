"""`erase`: erases concepts from a diffusers pipeline, in one call."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from lightning.pytorch.callbacks import Callback

from erasure_lightning.api.compose import compose
from erasure_lightning.api.pipelines import Borrowed, as_backbone
from erasure_lightning.api.quiet import interruptible, quiet
from erasure_lightning.api.recipe import Recipe, check_family, is_config, read_recipes
from erasure_lightning.api.trainer import default_steps, make_trainer, require_different_states
from erasure_lightning.backbones.families import FAMILIES
from erasure_lightning.callbacks.edit_validation import EditValidation
from erasure_lightning.callbacks.progress import Progress
from erasure_lightning.concepts.concept import Concept, ConceptKind, require_templates
from erasure_lightning.concepts.files import is_concept_file, read_concepts
from erasure_lightning.data.datamodule import PromptData
from erasure_lightning.edits.applied import Edit, load_edit
from erasure_lightning.edits.components import component_fingerprints
from erasure_lightning.edits.installation import holds_edit
from erasure_lightning.errors import ErasureError
from erasure_lightning.files.arguments import constructing
from erasure_lightning.registry import METHOD, RETENTION, find_offer, load_offer
from erasure_lightning.retention.base import RetentionCallback
from erasure_lightning.training.base import ErasureModule
from erasure_lightning.training.gradient import GradientErasure


def erase(
    pipeline: Any,
    concepts: str | Concept | Sequence[str | Concept] | Path,
    method: str | Path | type[ErasureModule] | Sequence[str | Path | type[ErasureModule]] = "SAGE",
    *,
    anchor: str = "",
    kind: ConceptKind = "thing",
    retain: Sequence[str] | str | None = None,
    retention: Sequence[RetentionCallback] | None = None,
    base_edit: str | Path | Edit | Sequence[str | Path | Edit] = (),
    steps: int | None = None,
    batch_size: int | None = None,
    templates: Sequence[str] | None = None,
    seed: int = 0,
    accelerator: str = "auto",
    progress_bar: bool = True,
    **arguments: Any,
) -> Edit:
    """Erase concepts from a pipeline, in place.

    The pipeline generates as before until the edit is finished; an error or an interruption leaves
    it unchanged. A pipeline that holds edits is edited further: the new edit is based on those,
    and lists them in its metadata.

    Args:
        pipeline: A diffusers pipeline of a known family (docs/families.md lists them).
        concepts: Concepts to erase: words, a `Concept`, several of them, or a file of concepts
            (``.csv``, ``.yaml``, ``.json``, ``.txt``).
        method: Name of a method, built in or from a plugin, or its class; or a config, by path or
            by the name of a shipped one (``flux/esd.yaml``), whose arguments of the method, steps,
            batch size, templates and retention callbacks are then the defaults. Of several, each
            is trained from the same model, and the edit is the sum, as of `compose`.
        anchor: What is generated in place of concepts that are text; empty for the empty prompt.
        kind: Kind of such concepts: a ``thing``, a ``style``, a ``person`` or an ``action``.
        retain: Prompts whose images must be as before, or the name of a shipped list (``artists``);
            they are passed to the retention callbacks.
        retention: Retention callbacks; by default the method's own, and `LocalNoisePreservation`
            where there are none and ``retain`` is given.
        base_edit: Edits, their files or runs that are applied first, the lowest first.
        steps: Training steps, at least 1; by default those of the method's paper or official code
            for each concept. A closed form takes one step.
        batch_size: Concept prompts in a training step, at least 1; 4 by default.
        templates: Sentences with ``{}`` for the concept; by default ten for each kind.
        seed: Seed of all random numbers; torch's own generator is as before.
        accelerator: What Lightning trains on, such as ``cpu`` or ``cuda``.
        progress_bar: Whether the training steps are shown.
        arguments: Arguments of the method's constructor, such as ``lr`` or ``erase_scale``; by
            default those for Stable Diffusion 1.x, so that other families need a config.

    Returns:
        The edit, which the pipeline holds, and which can be saved, weakened and removed.

    Raises:
        ErasureError: If the pipeline's family, the method, a concept or an argument is none that
            can be used, or the edit would change no weight or hold NaN.

    Example:
        >>> from erasure_lightning import erase
        >>> from erasure_lightning.backbones.tiny import TinyBackbone
        >>> pipeline = TinyBackbone().to_pipeline()
        >>> edit = erase(pipeline, "cat", method="UCE", anchor="dog", progress_bar=False)
        >>> edit
        Edit(UCE of cat, 8 tensors)
        >>> edit.strength = 0.5
        >>> edit.remove()
    """
    require_templates("erase", templates or ())
    recipes = _recipes(method)
    listed = _concepts(concepts, anchor, kind)
    edits: list[Edit] = []
    with ExitStack() as undo:
        _apply_first(base_edit, pipeline, undo)
        for recipe in recipes:
            own = deepcopy(retention) if len(recipes) > 1 else retention
            callbacks = _retention(recipe, own, retain)
            with (
                quiet(),
                interruptible(),
                torch.random.fork_rng(devices=[]),
                as_backbone(pipeline) as borrowed,
            ):
                module = _module(recipe, listed, borrowed, seed, arguments)
                sentences = list(templates) if templates else recipe.templates
                size = recipe.batch_size if batch_size is None else batch_size
                data = PromptData(size, templates=sentences)
                training = {"max_steps": _steps(module, recipe, steps), **recipe.trainer}
                trainer = _trainer(training, accelerator, callbacks, progress_bar)
                torch.manual_seed(seed)
                trainer.fit(module, data)
                edits.append(_edit(module))
            _set_fingerprints(edits[-1], pipeline)
        edit = compose(*edits, pipeline=pipeline) if len(edits) > 1 else edits[0]
        edit.apply(pipeline)
        undo.pop_all()
    return edit


def _apply_first(
    base_edit: str | Path | Edit | Sequence[str | Path | Edit], pipeline: Any, undo: ExitStack
) -> None:
    """Apply the edits to start from; ``undo`` removes those that the pipeline lacked."""
    several: Sequence[Any] = base_edit if isinstance(base_edit, list | tuple) else [base_edit]
    for each in several:
        edit = each if isinstance(each, Edit) else load_edit(each)
        if not holds_edit(edit, pipeline):
            undo.callback(edit.apply(pipeline).remove)


def _recipes(method: Any) -> list[Recipe]:
    """What each method is trained by: a config of several parts is several.

    Raises:
        ErasureError: If there is no method, or one is unknown.
    """
    listed = method if isinstance(method, list | tuple) else [method]
    if not listed:
        raise ErasureError("erase needs at least one method; found none.")
    return [
        recipe
        for each in listed
        for recipe in (read_recipes(each) if is_config(each) else [Recipe(_method(each))])
    ]


def _method(method: str | type[ErasureModule]) -> type[ErasureModule]:
    """The class of a method.

    Raises:
        ErasureError: If there is none of that name, or the class is no method.
    """
    if isinstance(method, str):
        method = load_offer(find_offer(METHOD, method))
    if not (isinstance(method, type) and issubclass(method, ErasureModule)):
        raise ErasureError(
            "erase needs a method by its name, its class or its config, or several in a list; found"
            f" {method!r}."
        )
    return method


def _trainer(
    training: Mapping[str, Any],
    accelerator: str,
    callbacks: Sequence[Callback],
    progress_bar: bool,
) -> Trainer:
    shown = [Progress()] if progress_bar else []
    return make_trainer(
        erase,
        **training,
        accelerator=accelerator,
        devices=1,
        callbacks=[*callbacks, EditValidation(), *shown],
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=progress_bar,
        limit_val_batches=0,
    )


def _concepts(
    concepts: str | Concept | Sequence[str | Concept] | Path, anchor: str, kind: ConceptKind
) -> list[Concept]:
    several: list[Any]
    if isinstance(concepts, Path) or (isinstance(concepts, str) and is_concept_file(concepts)):
        several = read_concepts(Path(concepts))
    elif isinstance(concepts, str | Concept | Mapping) or not isinstance(concepts, Iterable):
        several = [concepts]
    else:
        several = list(concepts)
    if others := [c for c in several if not isinstance(c, str | Concept)]:
        raise ErasureError(
            "erase needs each concept as text or as a Concept, or a file of them; found"
            f" {others[0]!r}."
        )
    if not several:
        raise ErasureError("erase needs at least one concept; found none.")
    ignored = f"anchor {anchor!r}" if anchor else f"kind {kind!r}" if kind != "thing" else ""
    if ignored and not any(isinstance(c, str) for c in several):
        raise ErasureError(
            f"erase needs the anchor and the kind of a Concept inside it; found {ignored} beside"
            f" {several[0].name!r}. Only concepts that are text take it."
        )
    return [c if isinstance(c, Concept) else Concept(c, anchor, kind=kind) for c in several]


def _retention(
    recipe: Recipe,
    retention: Sequence[Callback] | None,
    retain: Sequence[str] | str | None,
) -> list[Callback]:
    if retention is None:
        retention = recipe.retention
    if retention is None:
        retention = [*map(_retention_callback, recipe.method.default_retention)]
    if retain and not retention:
        retention = [_retention_callback("LocalNoisePreservation")]
    if not isinstance(retention, Iterable) or not all(isinstance(c, Callback) for c in retention):
        raise ErasureError(
            "erase needs retention callbacks in a list, such as [LocalNoisePreservation()]; found"
            f" {retention!r}."
        )
    if retain is not None:
        for callback in retention:
            if isinstance(callback, RetentionCallback):  # a monitor has prompts of its own
                callback.retain(retain)
    require_different_states(retention)
    return list(retention)


def _retention_callback(name: str) -> Callback:
    callback: Callback = load_offer(find_offer(RETENTION, name))()
    return callback


def _module(
    recipe: Recipe,
    concepts: list[Concept],
    borrowed: Borrowed,
    seed: int,
    arguments: dict[str, Any],
) -> ErasureModule:
    family = FAMILIES[borrowed.backbone.pipeline_class]
    check_family(recipe.pipeline, family)
    if borrowed.backbone.world is None:
        recipe.advise(family)
    cls = recipe.method
    chosen = {**recipe.arguments, **arguments}
    hints = {"domain": _concept_call(concepts[0], arguments.get("domain"))}
    with constructing(cls, erase, hints):
        module = cls(concepts=concepts, backbone=borrowed.backbone, seed=seed, **chosen)
    module.configure_model()
    borrowed.protect((module.editable() | module.trainable()).values())
    return module


def _concept_call(concept: Concept, domain: Any) -> str:
    """What to write for a domain, which is the concept's, as a sentence."""
    fields = {"anchor": concept.anchor, "domain": domain, "kind": concept.kind}
    written = [f"{name}={value!r}" for name, value in fields.items() if value not in ("", "thing")]
    return f" Write Concept({', '.join([repr(concept.name), *written])}) for {concept.name!r}."


def _steps(module: ErasureModule, recipe: Recipe, steps: int | None) -> int:
    if steps is not None and (not isinstance(steps, int) or steps < 1):
        raise ErasureError(f"erase needs steps of at least 1, a whole number; found {steps!r}.")
    chosen = steps or recipe.steps(len(module.concepts))
    return chosen if chosen and isinstance(module, GradientErasure) else default_steps(module)


def _set_fingerprints(edit: Edit, pipeline: Any) -> None:
    """Replace those of the precision in which an edit was trained by the pipeline's own."""
    prints = edit.metadata["fingerprints"]
    for name in prints:
        prints[name] = component_fingerprints(getattr(pipeline, name))


def _edit(module: ErasureModule) -> Edit:
    name = module.backbone.component_name
    values = {name(key): value for key, value in module.edit_values().items()}
    return Edit(values, module.description())
