"""Loggers of a run: their folder, their names and their account."""

import os
import re
from pathlib import Path

from jsonargparse import Namespace

from erasure_lightning.errors import ErasureError
from erasure_lightning.runs.dashboards import wandb_arguments
from erasure_lightning.runs.folder import Run
from erasure_lightning.runs.logger_session import check_account

#: Variable by which the user chooses the id of a W&B run.
_RUN_ID = "WANDB_RUN_ID"


def set_up_loggers(config: Namespace, command: str, run: Run) -> None:
    """Let loggers write into the run's folder, and name W&B's runs, where the user has not.

    A resumed fit has the id of the run that it continues.

    Args:
        config: The parsed options; those of its loggers are changed.
        command: ``fit`` for example.
        run: The run's folder.

    Raises:
        ErasureError: If W&B is to be written to online but there is no account; or if its settings
            are given: they decide what it collects of the machine.
    """
    loggers = config.trainer.logger
    listed = loggers if isinstance(loggers, list) else [loggers]
    configured = [logger for logger in listed if isinstance(logger, Namespace)]
    for logger in configured:
        if logger.init_args.get("save_dir", "") in (None, "."):
            # Absolute: a session of W&B keeps the working folder in which its process began.
            logger.init_args["save_dir"] = str(run.root.absolute())
    of_wandb = [one for one in configured if str(one.class_path).endswith(".WandbLogger")]
    if of_wandb:
        offline = all(logger.init_args.offline for logger in of_wandb)
        check_account(offline, "--trainer.logger.offline true")
    method = config.model.class_path.rsplit(".", 1)[-1]
    concepts = [concept.name for concept in config.model.init_args.concepts.listed]
    for logger in of_wandb:
        if logger.init_args.get("settings") is not None:
            raise ErasureError(
                "The wandb logger needs its own settings, which exclude host, user, folders"
                " and keys from its records; found others. Use its own options"
                " (--trainer.logger.project, ...) and variables (WANDB_...)."
            )
        ours = wandb_arguments(method, concepts, command, run.name)
        ours["project"] = os.environ.get("WANDB_PROJECT") or ours["project"]
        own = logger.init_args.get("save_dir") == str(run.root.absolute())
        if command == "fit" and own and _RUN_ID not in os.environ:
            ours["id"] = _begun_id(run.root)
        for key, value in ours.items():
            if logger.init_args.get(key) is None:
                logger.init_args[key] = value


def _begun_id(folder: Path) -> str | None:
    """The id of the last W&B run in a run's folder, whose name ends with it; None without one."""
    names = (
        re.fullmatch(r"(?:offline-)?run-(\d{8}_\d{6})-(.+)", p.name) for p in folder.glob("wandb/*")
    )
    return max((match.groups() for match in names if match), default=(None, None))[1]
