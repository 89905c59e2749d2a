"""The account of a W&B logger, and the end of a run's loggers."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from lightning.pytorch.loggers import Logger

from erasure_lightning.errors import ErasureError
from erasure_lightning.files.words import shell_word
from erasure_lightning.runs.dashboards import close_loggers

#: Variable of the folder where W&B copies what it will upload; the user's home by default.
_STAGING = "WANDB_DATA_DIR"

#: What W&B accepts as WANDB_MODE.
_MODES = ("online", "offline", "shared", "disabled", "dryrun", "run")


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
