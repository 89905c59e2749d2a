"""`evaluate` and `attack`: measures an edit of a pipeline, and its robustness."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from erasure_lightning.api.accelerator import default_device
from erasure_lightning.api.attack import paper_of
from erasure_lightning.api.load import edited_module
from erasure_lightning.api.pipelines import as_backbone, check_pipeline
from erasure_lightning.api.quiet import interruptible, quiet
from erasure_lightning.api.trainer import make_trainer
from erasure_lightning.attacks.base import Attack
from erasure_lightning.attacks.outcome import Outcome
from erasure_lightning.attacks.runner import attack_concepts, with_edit
from erasure_lightning.attacks.target import AttackSettings, AttackTarget
from erasure_lightning.callbacks.measure import Measure
from erasure_lightning.callbacks.progress import Progress
from erasure_lightning.data.datamodule import PromptData
from erasure_lightning.edits.applied import Edit, load_edit
from erasure_lightning.edits.base_edits import find_base_edits, locate_edit, missing_base_edits
from erasure_lightning.edits.installation import holds_edit, require_installable
from erasure_lightning.errors import ErasureError
from erasure_lightning.files.arguments import constructing
from erasure_lightning.metrics.protocol import Result
from erasure_lightning.registry import ATTACK, find_offer, load_offer
from erasure_lightning.training.base import ErasureModule

#: Arguments of `PromptData` without a meaning where an edit is measured.
_OF_TRAINING = ("batch_size", "steps_per_concept", "templates")


def evaluate(
    edit: Edit | str | Path,
    pipeline: Any,
    *,
    scorer: str | None = None,
    accelerator: str = "auto",
    progress_bar: bool = True,
    **data: Any,
) -> Result:
    """Measure an edit on a pipeline: images before and after it, from equal noise.

    The edit is measured at its full strength. The pipeline is not modified.

    Args:
        edit: An edit, its file, or the run folder that holds it.
        pipeline: The diffusers pipeline of its base model, with the edit or without it.
        scorer: Folder or Hub id of a CLIP or SigLIP that classifies the images; the world's own
            by default. Where there is neither, only pixels are compared.
        accelerator: What Lightning runs on, such as ``cpu`` or ``cuda``.
        progress_bar: Whether progress and the table of figures are shown.
        data: Arguments of `PromptData` that are of images: ``seeds``, ``others``, ``neighbours``,
            ``steps``, ``guidance``, ``image_size``, ``image_batch_size`` and ``originals``.

    Returns:
        The figures with their intervals, and how they were measured.

    Raises:
        ErasureError: If the edit is another model's, or an argument cannot be used.

    Example:
        >>> from erasure_lightning import erase, evaluate
        >>> from erasure_lightning.backbones.tiny import TinyBackbone
        >>> pipeline = TinyBackbone().to_pipeline()
        >>> edit = erase(pipeline, "cat", method="UCE", anchor="dog", progress_bar=False)
        >>> result = evaluate(edit, pipeline, seeds=2, others=2, steps=2, progress_bar=False)
        >>> result.estimates["structure"]["distance"]["after"].images
        4
    """
    if "prompts" in data:
        raise ErasureError(
            "evaluate generates images of its own prompts; found prompts. Generate those of a file"
            " with `erasure predict --data.prompts FILE` and score them with `erasure score`."
        )
    images = _images(data)
    measure = Measure(scorer, show=progress_bar)
    with (
        quiet(),
        interruptible(),
        _module(edit, pipeline) as module,
        TemporaryDirectory() as folder,
    ):
        trainer = make_trainer(
            evaluate,
            accelerator=accelerator,
            devices=1,
            callbacks=[measure, *([Progress()] if progress_bar else [])],
            logger=False,
            default_root_dir=folder,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=progress_bar,
        )
        trainer.test(module, datamodule=images, verbose=False)
    assert measure.result is not None
    return measure.result


def _images(data: dict[str, Any]) -> PromptData:
    """The images of a measurement, from arguments of `PromptData`.

    Raises:
        ErasureError: If an argument is unknown, or of training.
    """
    if of_training := [name for name in _OF_TRAINING if name in data]:
        raise ErasureError(
            f"evaluate needs arguments of images; found {of_training[0]}, which is of training."
            " Leave it out; image_batch_size is the number of images generated in a batch."
        )
    with constructing(PromptData, evaluate):
        return PromptData(**data)


def attack(
    edit: Edit | str | Path,
    pipeline: Any,
    attack: str | Attack = "UnlearnDiffAtk",
    *,
    scorer: str | None = None,
    settings: AttackSettings | None = None,
    progress_bar: bool = True,
    **budget: Any,
) -> Outcome:
    """Try to restore what an edit erased from a pipeline.

    An attack that fails at a small budget is no evidence of robustness. The edit is attacked at its
    full strength. The pipeline is not modified.

    Args:
        edit: An edit, its file, or the run folder that holds it.
        pipeline: The diffusers pipeline of its base model, with the edit or without it.
        attack: Name of an attack, built in or from a plugin, or an attack with its budget.
        scorer: Folder or Hub id of a CLIP or SigLIP that classifies the images; that of
            ``settings`` by default, else the world's own.
        settings: Number of seeds and images, and how images are sampled and scored.
        progress_bar: Whether a line is printed for each attempt.
        budget: Arguments of a named attack, such as ``steps`` or ``tokens``.

    Returns:
        The share of images that show the concept under attack, plainly prompted, and of the
        original.

    Raises:
        ErasureError: If no scorer can classify images, the edit is another model's, or the
            attack is unknown.

    Example:
        >>> from erasure_lightning import AttackSettings, attack, erase, find_world
        >>> pipeline = find_world("emoji-world").load_pipeline()
        >>> edit = erase(pipeline, "cat", method="UCE", anchor="dog", progress_bar=False)
        >>> budget = {"settings": AttackSettings(seeds=2, images=1, steps=2), "steps": 1}
        >>> outcome = attack(edit, pipeline, "SoftEmbedding", progress_bar=False, **budget)
        >>> sorted(outcome.success)
        ['attacked', 'original', 'plain']
    """
    if isinstance(attack, Attack) and budget:
        raise ErasureError(
            f"attack needs the budget in {type(attack).__name__}(...); found {', '.join(budget)}"
            " beside it."
        )
    settings = settings or AttackSettings()
    if scorer is not None:
        settings = replace(settings, scorer=scorer)
    chosen = attack if isinstance(attack, Attack) else _attack(attack, budget)
    with quiet(), interruptible(), _module(edit, pipeline) as module:
        module.to(default_device())
        target = AttackTarget(module.backbone, module.unedited, module.concepts, settings)
        report = print if progress_bar else lambda line: None
        outcome, _ = attack_concepts(chosen, target, report)
    file = edit.path if isinstance(edit, Edit) else locate_edit(edit)
    return with_edit(outcome, type(module).__name__, file, paper_of(outcome.attack))


def _attack(name: str, budget: dict[str, Any]) -> Attack:
    cls = load_offer(find_offer(ATTACK, name))
    with constructing(cls, attack):
        chosen: Attack = cls(**budget)
    return chosen


@contextmanager
def _module(edit: Edit | str | Path, pipeline: Any) -> Iterator[ErasureModule]:
    """The edit's module on the pipeline's own weights, which get their former values at the end."""
    edit = edit if isinstance(edit, Edit) else load_edit(edit)
    check_pipeline(pipeline)
    if edit.pipeline is not pipeline and holds_edit(edit, pipeline):
        edit = Edit(edit.tensors, edit.metadata, edit.path).apply(pipeline)
    applied = edit.pipeline is pipeline
    strength = edit.strength
    if applied and not edit.is_last():
        raise ErasureError(
            f"{edit!r} needs to be the last edit of the pipeline to be measured; found others on"
            " top. Remove these first."
        )
    if applied:
        require_installable(edit, pipeline)
        _require_base_edits(edit)
        edit.remove()
    beneath: list[Edit] = []
    try:
        beneath = edit.apply_base_edits(pipeline)
        with as_backbone(pipeline) as borrowed:
            yield edited_module(edit, borrowed)
    finally:
        for base in reversed(beneath):
            base.remove()
        if applied:
            edit.apply(pipeline, transfer=bool(edit.metadata.get("transferred")))
            if strength != 1:
                edit.strength = strength


def _require_base_edits(edit: Edit) -> None:
    """Raise unless an edit could be applied again to what is beneath it, once it is removed."""
    strength = edit.strength
    edit.strength = 0  # as if it were removed
    try:
        missing = missing_base_edits(edit, edit.pipeline)
        find_base_edits(missing, edit.path, edit.title)
    finally:
        edit.strength = strength
