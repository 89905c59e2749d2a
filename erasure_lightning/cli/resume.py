"""Arguments of a command that uses a checkpoint: taken from it, or checked against it."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning import Trainer
from lightning.pytorch.callbacks import Timer

from erasure_lightning.api.configs import dump_yaml, load_yaml, read_config
from erasure_lightning.cli.options import CONFIG_OPTIONS, Options
from erasure_lightning.errors import ErasureError
from erasure_lightning.files.earlier_names import renamed_config
from erasure_lightning.files.words import shell_word
from erasure_lightning.runs.folder import Run, run_of, unused_folder
from erasure_lightning.training.base import ErasureModule
from erasure_lightning.training.checkpoints import (
    check_resumption,
    locate_checkpoint,
    read_checkpoint,
)


def own_config(options: Options, command: str) -> list[str]:
    """The config of a checkpoint as arguments, where no other config and no method is named.

    Args:
        options: Options of the command line.
        command: ``fit``, ``validate``, ``test``, ``predict`` or ``plan``.

    Raises:
        ErasureError: If there is no such checkpoint.
    """
    checkpoint = options.get("--ckpt_path")
    if not checkpoint or options.names() & {*CONFIG_OPTIONS, "--model", "--model.class_path"}:
        return []
    file = locate_checkpoint(checkpoint, command)
    if (path := run_of(Path(checkpoint)).config).is_file():
        config = read_config(path)
        is_current = renamed_config(config) == config
        return ["--config", str(path) if is_current else dump_yaml(renamed_config(config))]
    text = read_checkpoint(file)["erasure"].get("config")
    return ["--config", dump_yaml(renamed_config(load_yaml(text)))] if text else []


def check_checkpoint(command: str, model: dict[str, Any], path: Path, max_steps: int) -> None:
    """Check a method and its arguments against a checkpoint, and warn of other arguments.

    Args:
        command: ``fit`` resumes, all others read an edit.
        model: ``class_path`` and ``init_args`` of the command, which are used.
        path: The checkpoint.
        max_steps: Steps of the run in all, -1 for any number.

    Raises:
        ErasureError: If the checkpoint is of another method, or `fit` cannot go on from it.
    """
    checkpoint = read_checkpoint(path)
    now = model["class_path"].rsplit(".", 1)[-1]
    then = checkpoint["erasure"]["method"].rsplit(".", 1)[-1]
    if now != then:
        raise ErasureError(
            f"The checkpoint was made by {then}, not by {now}. Give --model {then}, or leave the"
            " method out."
        )
    here = model.get("init_args", {})
    if command == "fit":
        check_resumption(path, checkpoint, here, max_steps)
    if others := _others(here, checkpoint["erasure"].get("arguments", {})):
        message = f"not as the checkpoint was made: {', '.join(others)}"
        print(f"erasure: warning: {message}.", file=sys.stderr)


def time_limit_message(trainer: Trainer, run: Run, module: ErasureModule) -> str:
    """Where ``max_time`` stopped a training, and how to resume it; empty if it did not.

    Args:
        trainer: Trainer of the run.
        run: Its folder.
        module: Its method.
    """
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    timers = [callback for callback in callbacks if isinstance(callback, Timer)]
    remaining = [timer.time_remaining() for timer in timers]
    steps = getattr(module, "training_steps", None) or 0
    if trainer.global_step >= steps or not any(r is not None and r <= 0 for r in remaining):
        return ""
    text = f"--trainer.max_time stopped it after {trainer.global_step} of {steps} steps."
    if not run.last.exists():
        return text
    folder = shell_word(unused_folder(run.root))
    return (
        f"{text} Resume it from its last checkpoint with `erasure fit --ckpt_path"
        f" {shell_word(run.last)} --run_dir {folder} --trainer.max_time null`."
    )


def _others(here: Mapping[str, Any], there: Mapping[str, Any], front: str = "") -> list[str]:
    """Arguments that differ, with both values; of two objects of one class their own."""
    others = []
    for name in (name for name in here if name in there):
        now = here[name]
        then = there[name]
        opaque = isinstance(then, str) and then.startswith("<")  # an object, not a value
        if isinstance(now, dict) and isinstance(then, dict) and _text(now) == _text(then):
            own, its = (each.get("init_args") or {} for each in (now, then))
            others += _others(own, its, f"{front}{name}.")
        elif not opaque and _text(now) != _text(then):
            others.append(f"{front}{name} {_text(now)} (checkpoint: {_text(then)})")
    return others


def _text(value: Any) -> str:
    """A value as it is written on a command line; a class by its name."""
    if isinstance(value, dict) and "class_path" in value:
        return str(value["class_path"]).rsplit(".", 1)[-1]
    return str(value)
