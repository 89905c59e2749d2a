"""Loggers of a run: their folder, their names, their account, and their end."""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch.loggers import Logger

from erasure_lightning.errors import ErasureError
from erasure_lightning.files.words import shell_word
from erasure_lightning.runs.dashboards import close_loggers, wandb_arguments
from erasure_lightning.runs.folder import Run

#: Variable of the folder where W&B copies what it will upload; the user's home by default.
_STAGING = "WANDB_DATA_DIR"

#: What W&B accepts as WANDB_MODE.
_MODES = ("online", "offline", "shared", "disabled", "dryrun", "run")

#: Variable by which the user chooses the id of a W&B run.
_RUN_ID = "WANDB_RUN_ID"


def place_loggers(loggers: Any, folder: Path) -> None:
    """Let every logger without a folder of its own write into the run's.

    Args:
        loggers: As configured.
        folder: The run's.
    """
    for logger in _configured(loggers):
        if logger.init_args.get("save_dir", folder) in (None, "."):
            logger.init_args["save_dir"] = str(folder)


def name_loggers(
    loggers: Any, method: str, concepts: Sequence[str], job: str, folder: Path
) -> None:
    """Name and group the runs of W&B loggers, where the user has not.

    A resumed fit has the id of the run that it continues.

    Args:
        loggers: As configured.
        method: Class name of the method.
        concepts: What is erased.
        job: The command, ``"fit"`` for example.
        folder: The run's.

    Raises:
        ErasureError: If W&B's settings are given: they decide what it collects of the machine.
    """
    for logger in filter(_is_wandb, _configured(loggers)):
        if logger.init_args.get("settings") is not None:
            raise ErasureError(
                "The wandb logger needs its own settings, which exclude host, user, folders"
                " and keys from its records; found others. Use its own options"
                " (--trainer.logger.project, ...) and variables (WANDB_...)."
            )
        ours = wandb_arguments(method, concepts, job, Run(folder).name)
        ours["project"] = os.environ.get("WANDB_PROJECT") or ours["project"]
        if job == "fit" and logger.init_args.get("save_dir") == str(folder):
            ours["id"] = None if _RUN_ID in os.environ else _begun_id(folder)
        for key, value in ours.items():
            if logger.init_args.get(key) is None:
                logger.init_args[key] = value


def _begun_id(folder: Path) -> str | None:
    """The id of the last W&B run in a run's folder, whose name ends with it; None without one."""
    names = (
        re.fullmatch(r"(?:offline-)?run-(\d{8}_\d{6})-(.+)", p.name) for p in folder.glob("wandb/*")
    )
    return max((match.groups() for match in names if match), default=(None, None))[1]


@contextmanager
def closing(folder: Path, loggers: Callable[[], Sequence[Logger]]) -> Iterator[None]:
    """Have W&B stage its files in the run's folder, and close the loggers at the end.

    Args:
        folder: The run's.
        loggers: Gives the loggers at the end.

    Raises:
        ErasureError: For an error of W&B.
    """
    staged = _STAGING not in os.environ
    os.environ.setdefault(_STAGING, str(folder.absolute() / "wandb"))
    failed = True
    try:
        yield
        failed = False
    except Exception as error:
        if type(error).__module__.startswith("wandb."):
            raise ErasureError(f"The wandb logger cannot log: {error}") from error
        raise
    finally:
        for offline in close_loggers(loggers(), failed):
            print(f"Offline logs can be uploaded later: wandb sync {shell_word(offline)}")
        if staged:
            os.environ.pop(_STAGING)


def check_wandb(loggers: Any) -> None:
    """Raise if a W&B logger is to log online but there is no account.

    Args:
        loggers: As configured.

    Raises:
        ErasureError: With the option to log offline.
    """
    if ours := list(filter(_is_wandb, _configured(loggers))):
        offline = all(logger.init_args.offline for logger in ours)
        check_account(offline, "--trainer.logger.offline true")


def check_account(offline: bool, offline_option: str) -> None:
    """Raise if W&B is to be written to online but there is no account.

    Args:
        offline: Whether the logger makes no connection.
        offline_option: Makes it log offline.

    Raises:
        ErasureError: With that option; or if WANDB_MODE is none of W&B's modes.
    """
    mode = os.environ.get("WANDB_MODE", "online")
    if mode not in _MODES:  # W&B fails on it at its first use, in the middle of the run
        raise ErasureError(f"WANDB_MODE needs one of {', '.join(_MODES)}; found {mode!r}.")
    if offline or mode != "online":
        return
    import wandb

    if not wandb.login(prompt=False):
        raise ErasureError(
            "The wandb logger needs an API key to log online; found none. Log in with `wandb"
            f" login`, or log offline: {offline_option}, or WANDB_MODE=offline."
        )


def _configured(loggers: Any) -> list[Namespace]:
    listed = loggers if isinstance(loggers, list) else [loggers]
    return [logger for logger in listed if isinstance(logger, Namespace)]


def _is_wandb(logger: Namespace) -> bool:
    return str(logger.class_path).endswith(".WandbLogger")
