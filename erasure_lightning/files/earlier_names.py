"""Names of arguments in files of earlier versions, and what they are called now."""

from collections.abc import Mapping
from typing import Any

#: Arguments of methods.
_OF_METHODS = {"base": "base_dtype", "thresh": "threshold"}

#: Arguments of one method, which have another meaning in others.
_OF_METHOD = {
    "sage": {"edit": "train"},
    **{method: {"preserve": "preserve_scale"} for method in ("mace", "eap", "trce", "age")},
    **{method: {"guidance": "eta"} for method in ("receler", "spm")},
}

#: Arguments of `PromptData` and of `AttackSettings`.
_OF_DATA = {
    "rounds": "steps_per_concept",
    "size": "image_size",
    "draw_size": "image_batch_size",
    "pictures": "images",
}

#: Arguments of retention callbacks.
_OF_CALLBACKS = {"nearness": "retained_share"}

#: Arguments of `RetentionMonitor`.
_OF_MONITOR = {"budget": "min_retained"}


def renamed_option(option: str) -> str:
    """An option under its name of now, ``--data.image_size`` for ``--data.size``.

    Args:
        option: Its name, with or without the section and the dashes.
    """
    section, dot, name = option.rpartition(".")
    every = _OF_METHODS | _OF_METHOD["sage"] | _OF_DATA | _OF_CALLBACKS | _OF_MONITOR
    return f"{section}{dot}{every.get(name, name)}"


def renamed_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A run's config with its arguments under their names of now.

    Args:
        config: The content of its ``config.yaml``.
    """
    renamed = dict(config)
    if isinstance(model := config.get("model"), Mapping):
        names = _names_of_method(model.get("class_path"))
        renamed["model"] = _with_renamed_arguments(model, names)
    if isinstance(data := config.get("data"), Mapping):
        renamed["data"] = _renamed(data, _OF_DATA)
    trainer = config.get("trainer")
    if isinstance(trainer, Mapping) and isinstance(callbacks := trainer.get("callbacks"), list):
        renamed["trainer"] = {**trainer, "callbacks": [*map(_renamed_callback, callbacks)]}
    return renamed


def renamed_suite(content: Mapping[str, Any]) -> dict[str, Any]:
    """A suite with the options of its fits and attacks under their names of now.

    Args:
        content: The suite, with its configs written out.
    """
    renamed = {**content, "options": _renamed_options(content["options"])}
    for key in ("methods", "attacks"):
        renamed[key] = [
            {**entry, "options": _renamed_options(entry["options"])} for entry in content[key]
        ]
    for entry in renamed["methods"]:
        entry["config"] = renamed_config(entry["config"])
    return renamed


def renamed_metadata(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Metadata of an edit with its method's arguments under their names of now.

    Args:
        metadata: The metadata, of an edit's file or of a checkpoint.
    """
    renamed = dict(metadata)
    if isinstance(arguments := metadata.get("arguments"), Mapping):
        renamed["arguments"] = _renamed(arguments, _names_of_method(metadata.get("method")))
    return renamed


def renamed_figures(content: dict[str, Any]) -> dict[str, Any]:
    """An object of a file of figures, with counts and controls under their names of now.

    Args:
        content: The object, of JSON.
    """
    names = {}
    if isinstance(content.get("pictures"), int):  # a concept of that name has prompts
        names["pictures"] = "images"
    if isinstance(content.get("untaught"), dict):
        names["untaught"] = "shuffled"
    return _renamed(content, names)


def _names_of_method(class_path: Any) -> dict[str, str]:
    name = str(class_path).rpartition(".")[2].casefold()
    return _OF_METHODS | _OF_METHOD.get(name, {})


def _renamed_options(options: Mapping[str, Any]) -> dict[str, Any]:
    return {renamed_option(option): value for option, value in options.items()}


def _renamed_callback(entry: Any) -> Any:
    is_monitor = isinstance(entry, Mapping) and "RetentionMonitor" in str(entry.get("class_path"))
    return _with_renamed_arguments(entry, _OF_MONITOR if is_monitor else _OF_CALLBACKS)


def _with_renamed_arguments(entry: Any, names: Mapping[str, str]) -> Any:
    """A class with its arguments, or its name alone, as configs have it."""
    if not isinstance(entry, Mapping) or not entry.get("init_args"):
        return entry
    return {**entry, "init_args": _renamed(entry["init_args"], names)}


def _renamed(values: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    return {names.get(name, name): value for name, value in values.items()}
