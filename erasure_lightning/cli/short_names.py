"""Short names of classes, loggers and configs, and the full ones that the parser needs."""

import json
import os
import re
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import yaml

from erasure_lightning.api.configs import find_config, load_yaml
from erasure_lightning.backbones.sources import locate_pipeline
from erasure_lightning.cli.concept_options import concept_list, concepts, concepts_option
from erasure_lightning.cli.options import CONFIG_OPTIONS, Option
from erasure_lightning.cli.slow_import import load_with_notice
from erasure_lightning.errors import ErasureError
from erasure_lightning.registry import (
    ATTACK,
    METHOD,
    RETENTION,
    ExtensionKind,
    find_offer,
    known_offers,
    our_class,
)

#: Loggers beside ``metrics.csv``, which is written unless the logger is ``false``.
LOGGERS: dict[str, Any] = {
    "csv": True,
    "tensorboard": {
        "class_path": "lightning.pytorch.loggers.TensorBoardLogger",
        "init_args": {"save_dir": "."},
    },
    "wandb": {"class_path": "lightning.pytorch.loggers.WandbLogger"},
}

_CLASS_PATH = re.compile(r"[A-Za-z_]\w*(\.\w+)*\.[A-Z]\w*")


def class_path(name: str) -> str:
    """The class path of a class of ours or of a retention callback; everything else as it is.

    Raises:
        ErasureError: If a retention callback cannot be loaded.
    """
    path = our_class(name)
    is_short = path == name and name.isidentifier()
    if is_short and name.casefold() in map(str.casefold, retention_names()):
        return offered_path(RETENTION, name)
    return path


def retention_names() -> list[str]:
    """Names of all retention callbacks."""
    return [offer.name for offer in known_offers(RETENTION)]


def offered_path(kind: ExtensionKind, name: str) -> str:
    """The class path of what a package offers, by its name; paths as they are.

    Args:
        kind: The kind of class.
        name: The name or the path.

    Raises:
        ErasureError: If the name is unknown or its package cannot be loaded.
    """
    if "." in name:
        return name
    offer = find_offer(kind, name)
    load_with_notice(offer)
    return offer.class_path


def logger(name: str) -> Any:
    """A logger by its short name; everything else as it is."""
    return LOGGERS.get(name.lower(), name)


def logger_path(name: str) -> str:
    """A logger's class path by its short name; everything else as it is."""
    value = logger(name)
    return str(value["class_path"]) if isinstance(value, dict) else name


def backbone(name: str) -> str | dict[str, str]:
    """A backbone's class where a class is named, else the name of weights."""
    path = our_class(name)
    return {"class_path": path} if _CLASS_PATH.fullmatch(path) else name


def backbone_option(name: str) -> str | dict[str, str]:
    """A backbone as an option's value.

    The parser would take the content of a text file for its name, so files are located here.

    Raises:
        ErasureError: If it is a file that is no model.
    """
    value = backbone(name)
    if isinstance(value, str) and os.path.isfile(value):
        locate_pipeline(value)
    return value


#: What gives the full name of a string under a key of a config.
_BY_KEY: dict[str, Callable[[str], Any]] = {
    "model": partial(offered_path, METHOD),
    "model.class_path": partial(offered_path, METHOD),
    "attack.class_path": partial(offered_path, ATTACK),
    "callbacks": class_path,
    "logger": logger,
    "logger.class_path": logger_path,
    "backbone": backbone,
    "latents": our_class,
    "adversary": our_class,
    "concepts": concepts,
}

#: The same behind an option; in a config ``attack`` may be an argument of a method.
_BY_OPTION = _BY_KEY | {
    "attack": partial(offered_path, ATTACK),
    "backbone": backbone_option,
    "concepts": concepts_option,
}


def load_names(text: str) -> Any:
    """The value of a text in YAML with all short names in full; the parser's loader."""
    return with_full_names(load_yaml(text))


def with_full_names(value: Any, key: str = "") -> Any:
    """A config's value with all short names in full.

    Args:
        value: Plain values.
        key: Their key.
    """
    if isinstance(value, dict):
        return {
            k: with_full_names(v, f"{key}.{k}" if k == "class_path" else k)
            for k, v in _with_arguments(value).items()
        }
    if isinstance(value, list) and key == "concepts":
        return concept_list(value)
    if isinstance(value, list):
        return [item for v in value if (item := _item(v, key)) is not True]
    if not isinstance(value, str):
        return value
    in_full = _BY_KEY.get(key, class_path if key.endswith(".class_path") else None)
    return in_full(value) if in_full else value


def _with_arguments(entry: dict[str, Any]) -> dict[str, Any]:
    """A mapping of a config; an ``init_args`` without a value is left out.

    Raises:
        ErasureError: If ``init_args`` is no mapping.
    """
    arguments = entry.get("init_args", {})
    if arguments is None:
        return {key: value for key, value in entry.items() if key != "init_args"}
    if not isinstance(arguments, dict):
        raise ErasureError(
            f"init_args of {entry.get('class_path', 'a class')} needs entries NAME: VALUE; found"
            f" {arguments!r}."
        )
    return entry


def _item(value: Any, key: str) -> Any:
    """An item of a list; the name of a class becomes a dict, since its neighbours may be one."""
    item = with_full_names(value, key)
    is_class = isinstance(item, str) and key in ("callbacks", "logger")
    return {"class_path": item} if is_class else item


def full_words(options: Iterable[Option]) -> list[str]:
    """The words of a command line, with all short names and the names of configs in full.

    Raises:
        ErasureError: If a method, an attack, a config or a file of concepts cannot be found.
    """
    words: list[str] = []
    for option in options:
        if option.name and option.value is not None:
            option = option._replace(value=_value(option.name, option.value))
        words += option.words()
    return words


def _value(option: str, word: str) -> str:
    if option in CONFIG_OPTIONS:
        return str(find_config(word))
    keys = option.removesuffix("+").lstrip("-").split(".")
    while keys[-1] in ("class_path", "help") and len(keys) > 1:
        keys.pop()
    key = keys[-1]
    if key == "concepts" and option.endswith("+"):
        raise ErasureError(
            f"{option} is not known: give all concepts as one --model.concepts, a list or a file."
        )
    if word.startswith(("{", "[")):
        return _literal(key, word)
    if key not in _BY_OPTION or (key in ("model", "attack") and len(keys) > 1):
        return word
    full = _BY_OPTION[key](word)
    return full if isinstance(full, str) else json.dumps(full, ensure_ascii=False)


def _literal(key: str, word: str) -> str:
    """A value in YAML; those of callbacks and loggers with all short names in full."""
    if key not in ("concepts", "callbacks", "logger"):
        return word
    try:
        full = with_full_names(load_yaml(word), key)
    except yaml.YAMLError as error:
        if key != "concepts":
            return word  # the parser reports it
        problem = getattr(error, "problem", None) or error
        raise ErasureError(
            "--model.concepts needs a file or a list like '[{name: cigarette}]';"
            f" {word!r} is no valid YAML ({problem})."
        ) from error
    return word if key == "concepts" else json.dumps(full, default=str)
