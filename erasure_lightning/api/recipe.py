"""Recipes of `erase`: a method with what a fit by it has in place of the defaults."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import ceil
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_warn

from erasure_lightning.api.configs import (
    RECIPES,
    config_content,
    recipe_pipeline,
    shipped_configs,
)
from erasure_lightning.backbones.families import FAMILIES, Family
from erasure_lightning.backbones.sources import family_of, is_hub_id, locate_pipeline
from erasure_lightning.benchmark.suite_reader import read_parts
from erasure_lightning.errors import ErasureError
from erasure_lightning.files.arguments import constructing
from erasure_lightning.registry import (
    METHOD,
    RETENTION,
    ExtensionKind,
    find_offer,
    known_offers,
    load_offer,
    our_class,
)
from erasure_lightning.training.base import ErasureModule

#: Arguments of the trainer that the edit depends on; others are of a run and its machine.
_OF_TRAINING = ("accumulate_grad_batches", "gradient_clip_algorithm", "gradient_clip_val")

#: Arguments of a method that `erase` sets.
_OF_ERASE = {"backbone", "concepts", "seed"}

#: Arguments that are objects, which a config may name by their class alone.
_OBJECTS = {"adversary", "latents"}


#: The family whose numbers constructor defaults are.
_OF_DEFAULTS = "sd15"


@dataclass(frozen=True)
class Recipe:
    """A method, and what a fit by it has in place of the defaults.

    Args:
        method: Its class.
        arguments: Arguments of its constructor.
        retention: Retention callbacks; by default the method's own.
        batch_size: Concept prompts in a training step.
        templates: Sentences with ``{}`` for the concept; ``None`` for those of its kind.
        max_steps: Training steps at most; ``None`` for any number.
        steps_per_concept: Batches for each concept; ``None`` for any number.
        trainer: Arguments of Lightning's trainer.
        pipeline: Pipeline class whose models a shipped recipe is for; empty for any.
    """

    method: type[ErasureModule]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    retention: Sequence[Callback] | None = None
    batch_size: int = 4
    templates: list[str] | None = None
    max_steps: int | None = None
    steps_per_concept: int | None = None
    trainer: Mapping[str, Any] = field(default_factory=dict)
    pipeline: str = ""

    def steps(self, concepts: int) -> int | None:
        """Training steps for a number of concepts; ``None`` for the method's own."""
        bounds = [self.max_steps] if self.max_steps else []
        if self.steps_per_concept:
            batches = self.steps_per_concept * concepts
            bounds.append(ceil(batches / self.trainer.get("accumulate_grad_batches", 1)))
        return min(bounds, default=None)

    def advise(self, family: Family) -> None:
        """Warns where it has the defaults, and the model's family a recipe with other numbers."""
        of_families = {FAMILIES[pipeline].title: folder for folder, pipeline in RECIPES.items()}
        folder = of_families.get(family.title, _OF_DEFAULTS)
        if folder == _OF_DEFAULTS or self != Recipe(self.method):
            return
        name = self.method.__name__
        line = f"class_path: {name}\n"
        for file, path in shipped_configs(folder).items():
            if line in path.read_text(encoding="utf-8"):
                rank_zero_warn(
                    f"{name}'s defaults are for Stable Diffusion 1.x; found {family.title}, for"
                    f" which there is a recipe: erase(..., method='{folder}/{file}')."
                )


def check_family(pipeline: str, family: Family) -> None:
    """Raises for a model of another family than a shipped recipe is for.

    Args:
        pipeline: Pipeline class that the recipe is for; empty for any.
        family: The model's.

    Raises:
        ErasureError: If it is another one.
    """
    if pipeline and FAMILIES[pipeline].title != family.title:
        raise ErasureError(
            f"A recipe for {FAMILIES[pipeline].title} needs such a model; found {family.title}."
            " Take the recipe of its family, or give the path of a copy."
        )


def check_recipe(name: str, backbone: Any) -> None:
    """`check_family` for a config and a model by their names; models of the Hub are not read.

    Args:
        name: The config's.
        backbone: The model's, or a model.

    Raises:
        ErasureError: If it is of another family, or cannot be read.
    """
    pipeline = recipe_pipeline(name)
    if not (pipeline and isinstance(backbone, str)):
        return
    if not is_hub_id(backbone) or os.path.isdir(backbone):
        source = locate_pipeline(backbone)
        check_family(pipeline, family_of(source, source.index()))


def is_config(name: Any) -> bool:
    """Whether a method is given as a config: a path, a name with a folder, or one with a suffix."""
    is_name = isinstance(name, str) and (name.endswith((".yaml", ".yml")) or "/" in name)
    return is_name or isinstance(name, Path)


def read_recipes(name: str | Path) -> list[Recipe]:
    """The recipe of a config, or those of its parts.

    Args:
        name: Its path, or the name of a shipped one (``flux/esd.yaml``).

    Raises:
        ErasureError: If there is no such config, it is of no method, or a class in it is unknown
            or refuses its arguments.
    """
    content = config_content(str(name))
    if "parts" not in content:
        return [replace(_recipe(content, str(name)), pipeline=recipe_pipeline(str(name)))]
    parts = read_parts(content, str(name), config_content)
    if optional := [part.name for part in parts if part.options]:
        raise ErasureError(
            f"erase needs the options of {name}'s part {optional[0]} in a config of its own; found"
            " them beside its config."
        )
    return [_recipe(part.config, part.name) for part in parts]


def _recipe(content: Mapping[str, Any], place: str) -> Recipe:
    data = content.get("data", {})
    trainer = content.get("trainer", {})
    steps = trainer.get("max_steps") or -1
    try:
        model = _entry(content.get("model"), "model")
        own = {k: v for k, v in model["init_args"].items() if k not in _OF_ERASE}
        method = _class(model["class_path"], METHOD)
        if not (isinstance(method, type) and issubclass(method, ErasureModule)):
            raise ErasureError(f"model needs a method; found {model['class_path']}.")
        return Recipe(
            method=method,
            arguments=_arguments(own),
            retention=_retention(trainer.get("callbacks")),
            batch_size=data.get("batch_size") or 4,
            templates=data.get("templates"),
            max_steps=steps if steps > 0 else None,
            steps_per_concept=data.get("steps_per_concept"),
            trainer={k: trainer[k] for k in _OF_TRAINING if trainer.get(k) is not None},
        )
    except ErasureError as error:
        raise ErasureError(f"{place}: {error}") from error


def _retention(callbacks: Any) -> list[Callback]:
    """Those callbacks of a config that retain; others are of a run."""
    listed = callbacks if isinstance(callbacks, list) else [callbacks] if callbacks else []
    names = {offer.name.casefold() for offer in known_offers(RETENTION)}
    entries = [_entry(callback, "callbacks") for callback in listed]
    return [
        _object(entry, RETENTION)
        for entry in entries
        if entry["class_path"].rpartition(".")[2].casefold() in names
    ]


def _arguments(values: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a constructor, with their objects."""
    return {
        key: _object(_entry(value, key)) if key in _OBJECTS and value is not None else value
        for key, value in values.items()
    }


def _object(entry: Mapping[str, Any], kind: ExtensionKind | None = None) -> Any:
    cls = _class(entry["class_path"], kind)
    with constructing(cls):
        return cls(**_arguments(entry["init_args"]))


def _entry(value: Any, key: str) -> dict[str, Any]:
    """``class_path`` and ``init_args`` of an object, which a config may name by its class alone.

    Raises:
        ErasureError: If it is something else.
    """
    entry = {"class_path": value} if isinstance(value, str) else value
    if not isinstance(entry, Mapping) or not isinstance(entry.get("class_path"), str):
        raise ErasureError(f"{key} needs a class_path, with init_args; found {value!r}.")
    return {"class_path": entry["class_path"], "init_args": entry.get("init_args") or {}}


def _class(name: str, kind: ExtensionKind | None) -> Any:
    """A class by its path, or by its short name.

    Args:
        name: Either.
        kind: What it is of those that packages offer; ``None`` for one of ours alone.

    Raises:
        ErasureError: If there is none, or it cannot be imported.
    """
    path = our_class(name)
    if kind is not None and "." not in path:
        return load_offer(find_offer(kind, path))
    try:
        return resolve_name(path)
    except (ImportError, AttributeError, ValueError) as error:
        raise ErasureError(f"the class {path} cannot be imported: {error}.") from error
