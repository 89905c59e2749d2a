"""Short names, written out in full before the parser sees them: in argv, and in whatever YAML it loads."""

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

from erasure_lightning.cli.configs import checked_config, load_yaml
from erasure_lightning.registry import find_method, load_method

#: Our own classes that configs name; Lightning's go by their class names anyway.
CLASSES = {
    "GlobalSemanticAlignment": "erasure_lightning.retention.global_alignment.GlobalSemanticAlignment",
    "LocalNoisePreservation": "erasure_lightning.retention.local_noise.LocalNoisePreservation",
    "LocalStatePreservation": "erasure_lightning.retention.local_states.LocalStatePreservation",
    "UnconditionalDrift": "erasure_lightning.retention.unconditional_drift.UnconditionalDrift",
    "Measure": "erasure_lightning.callbacks.measure.Measure",
    "SampleGrid": "erasure_lightning.callbacks.samples.SampleGrid",
    "RetentionMonitor": "erasure_lightning.retention.monitor.RetentionMonitor",
    "TinyBackbone": "erasure_lightning.backbones.tiny.TinyBackbone",
    "TrajectoryBank": "erasure_lightning.sampling.TrajectoryBank",
}

#: Loggers beside ``metrics.csv``, which is written unless the logger is ``false``.
LOGGERS: dict[str, Any] = {
    "csv": True,
    "tensorboard": {"class_path": "lightning.pytorch.loggers.TensorBoardLogger", "init_args": {"save_dir": "."}},
    "wandb": {"class_path": "lightning.pytorch.loggers.WandbLogger"},
}

_CLASS_PATH = re.compile(r"[A-Za-z_]\w*(\.\w+)*\.[A-Z]\w*")


def class_path(name: str) -> str:
    """One of `CLASSES` in full; everything else as it is."""
    lower = {key.casefold(): path for key, path in CLASSES.items()}
    return lower.get(name.casefold(), name)


def method_path(name: str) -> str:
    """A method's class path by its name; paths as they are.

    Raises:
        ErasureError: If the name is unknown or its package cannot be loaded.
    """
    if not name.isidentifier():
        return name
    method = find_method(name)
    load_method(method)
    return method.class_path


def logger(name: str) -> Any:
    """A logger by its short name; everything else as it is."""
    return LOGGERS.get(name.lower(), name)


def backbone(name: str) -> str | dict[str, str]:
    """A backbone's class where a class is named, else the name of weights."""
    path = class_path(name)
    return {"class_path": path} if _CLASS_PATH.fullmatch(path) else name


#: What to make of a string under a key.
_UNDER: dict[str, Callable[[str], Any]] = {
    "model": method_path,
    "model.class_path": method_path,
    "callbacks": class_path,
    "logger": logger,
    "backbone": backbone,
    "bank": class_path,
}


def load_names(text: str) -> Any:
    """YAML with all short names in full; the parser's loader."""
    return written_out(load_yaml(text))


def written_out(value: Any, key: str = "") -> Any:
    """A config's value with all short names in full.

    Args:
        value: Plain values.
        key: What they stand under.
    """
    if isinstance(value, dict):
        return {k: written_out(v, f"{key}.{k}" if k == "class_path" else k) for k, v in value.items()}
    if isinstance(value, list):
        return [item for v in value if (item := _item(v, key)) is not True]
    if not isinstance(value, str):
        return value
    naming = _UNDER.get(key, class_path if key.endswith(".class_path") else None)
    return naming(value) if naming else value


def _item(value: Any, key: str) -> Any:
    """Names in a list need a dict, since their neighbours may be one."""
    found = written_out(value, key)
    return {"class_path": found} if isinstance(found, str) and key in ("callbacks", "logger") else found


def arguments(argv: list[str]) -> list[str]:
    """Command-line arguments with all short names, and the names of configs, in full."""
    return list(_arguments(argv))


def _arguments(argv: list[str]) -> Iterator[str]:
    option = ""
    for word in argv:
        if option:
            yield _value(option, word)
            option = ""
        elif word.startswith("-") and "=" in word:
            name, _, value = word.partition("=")
            yield f"{name}={_value(name, value)}"
        else:
            option = word if word.startswith("-") else ""
            yield word


def _value(option: str, word: str) -> str:
    if option in ("-c", "--config"):
        return str(checked_config(word))
    steps = option.removesuffix("+").lstrip("-").split(".")
    while steps[-1] in ("class_path", "help") and len(steps) > 1:
        steps.pop()
    if word.startswith(("{", "[")) or steps[-1] not in _UNDER or (steps[-1] == "model" and len(steps) > 1):
        return word
    full = _UNDER[steps[-1]](word)
    return full if isinstance(full, str) else json.dumps(full)
