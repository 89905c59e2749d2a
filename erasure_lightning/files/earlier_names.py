"""Names of arguments in files of earlier versions, and what they are called now."""

from collections.abc import Mapping
from typing import Any

#: Arguments of methods.
_OF_METHODS = {"base": "base_dtype"}

#: Arguments of `PromptData` and of `AttackSettings`.
_OF_DATA = {"size": "image_size", "draw_size": "image_batch_size", "pictures": "images"}


def renamed_option(option: str) -> str:
    """An option under its name of now, ``--data.image_size`` for ``--data.size``.

    Args:
        option: Its name, with or without the section and the dashes.
    """
    section, dot, name = option.rpartition(".")
    return f"{section}{dot}{(_OF_METHODS | _OF_DATA).get(name, name)}"


def renamed_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A run's config with its arguments under their names of now.

    Args:
        config: The content of its ``config.yaml``.
    """
    renamed = dict(config)
    if isinstance(model := config.get("model"), Mapping) and model.get("init_args"):
        renamed["model"] = {**model, "init_args": _renamed(model["init_args"], _OF_METHODS)}
    if isinstance(data := config.get("data"), Mapping):
        renamed["data"] = _renamed(data, _OF_DATA)
    return renamed


def renamed_metadata(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Metadata of an edit with its method's arguments under their names of now.

    Args:
        metadata: The metadata, of an edit's file or of a checkpoint.
    """
    renamed = dict(metadata)
    if isinstance(arguments := metadata.get("arguments"), Mapping):
        renamed["arguments"] = _renamed(arguments, _OF_METHODS)
    return renamed


def renamed_count(content: dict[str, Any]) -> dict[str, Any]:
    """An object of a file of figures, with its number of images under the name of now.

    Args:
        content: The object, of JSON.
    """
    counts = isinstance(content.get("pictures"), int)  # a concept of that name has prompts
    return _renamed(content, {"pictures": "images"}) if counts else content


def _renamed(values: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    return {names.get(name, name): value for name, value in values.items()}
