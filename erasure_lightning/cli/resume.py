"""What a checkpoint has to say about the arguments of the command that uses it."""

import sys
from pathlib import Path
from typing import Any

from erasure_lightning.cli.options import CONFIG_OPTIONS, Options
from erasure_lightning.errors import ErasureError
from erasure_lightning.runs.folder import run_of
from erasure_lightning.training.checkpoints import (
    CHECKPOINT_SUFFIXES,
    locate_checkpoint,
    read_checkpoint,
)


def own_config(options: Options, command: str) -> list[str]:
    """The config a checkpoint was made with, as arguments, where the command line names a
    checkpoint but no method.

    Raises:
        ErasureError: If there is no such checkpoint.
    """
    checkpoint = options.get("--ckpt_path")
    if not checkpoint or options.names() & {*CONFIG_OPTIONS, "--model", "--model.class_path"}:
        return []
    locate_checkpoint(checkpoint, command)
    path = Path(checkpoint)
    if (config := run_of(path).config).is_file():
        return ["--config", str(config)]
    if (
        path.is_file()
        and path.suffix in CHECKPOINT_SUFFIXES
        and (text := read_checkpoint(path)["erasure"].get("config"))
    ):
        return ["--config", text]
    return []


def check_same(model: dict[str, Any], made: dict[str, Any]) -> None:
    """Raise if a checkpoint is another method's, and warn of other arguments; those given now are
    used.

    Args:
        model: ``class_path`` and ``init_args`` as asked for now.
        made: What the checkpoint says it was made from.

    Raises:
        ErasureError: If the methods differ.
    """
    now, then = model["class_path"].rsplit(".", 1)[-1], made["method"].rsplit(".", 1)[-1]
    if now != then:
        raise ErasureError(
            f"The checkpoint was made by {then}, not by {now}. Give --model {then}, or leave the"
            " method out."
        )
    here, there = model.get("init_args", {}), made.get("arguments", {})
    keys = [key for key in here if key in there and _differ(here[key], there[key])]
    odd = [f"{key} {_said(here[key])} (checkpoint: {_said(there[key])})" for key in keys]
    if odd:
        print(
            f"erasure: warning: not as the checkpoint was made: {', '.join(odd)}.", file=sys.stderr
        )


def check_unfinished(path: Path, step: int, max_steps: int) -> None:
    """Raise if a run that goes on from a checkpoint would take no step: what ends a training would
    never happen.

    Args:
        path: The checkpoint.
        step: Steps it has taken.
        max_steps: Steps that are asked for in all, -1 for any number.

    Raises:
        ErasureError: If so.
    """
    if 0 <= max_steps <= step:
        raise ErasureError(
            f"{path} has taken {step} steps, and --trainer.max_steps {max_steps} asks for no more."
            " Ask for more, or use what it holds: `erasure test`, `predict` and `attack` take it"
            " as --ckpt_path."
        )


def _differ(now: Any, then: Any) -> bool:
    opaque = isinstance(then, str) and then.startswith("<")  # an object, not a value
    return not opaque and _said(now) != _said(then)


def _said(value: Any) -> str:
    """A value as the user says it; a class by its name."""
    if isinstance(value, dict) and "class_path" in value:
        return str(value["class_path"]).rsplit(".", 1)[-1]
    return str(value)
