"""Loggers that were asked for: in the run's folder, and able to log."""

import os
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from erasure_lightning.errors import ErasureError


def place(loggers: Any, folder: Path) -> None:
    """Let every logger without a folder of its own write into the run's."""
    for logger in _configured(loggers):
        if logger.init_args.get("save_dir", folder) in (None, "."):
            logger.init_args["save_dir"] = str(folder)


def check_wandb(loggers: Any) -> None:
    """Raise if W&B is to log online but has no account.

    Raises:
        ErasureError: Saying how to log offline.
    """
    asked = [logger for logger in _configured(loggers) if logger.class_path.endswith(".WandbLogger")]
    offline = os.environ.get("WANDB_MODE", "online") != "online" or all(logger.init_args.offline for logger in asked)
    if offline or not asked:
        return
    import wandb

    if not wandb.login(prompt=False):
        raise ErasureError(
            "The wandb logger needs an API key to log online; found none. Log in with `wandb login`, or log offline: "
            "--trainer.logger.offline true, or WANDB_MODE=offline."
        )


def _configured(loggers: Any) -> list[Namespace]:
    given = loggers if isinstance(loggers, list) else [loggers]
    return [logger for logger in given if isinstance(logger, Namespace)]
