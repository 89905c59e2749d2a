"""The rank of this process as launchers set it, before the rendezvous; imports no torch."""

import os
from typing import Any

from erasure_lightning.errors import ErasureError

#: Jobs of SLURM whose numbers Lightning disregards: each process is a run of its own, or starts its
#: own ranks.
_INTERACTIVE = ("bash", "interactive")


def is_first_process() -> bool:
    """Whether this process is the first of all, which prints for them."""
    return _numbers() == ("0", "0")


def error_prefix(together: bool = True) -> str | None:
    """Prefix of the errors that a process prints.

    The first of all has none, the first of every other machine its rank. The other
    processes of a machine print no error, since its first one meets the same.

    Args:
        together: Whether the processes are ranks of one run; others print their own errors.

    Returns:
        The prefix, or ``None`` for a process that prints no error.
    """
    rank, local = _numbers()
    if is_first_process():
        return ""
    return f"rank {rank} on {os.uname().nodename}: " if local == "0" or not together else None


def launched_ranks() -> tuple[int, int] | None:
    """Processes that torchrun has started here, and its machines; ``None`` without torchrun."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return None
    return int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["GROUP_WORLD_SIZE"])


def use_launched_ranks(trainer: Any) -> None:
    """Take the number of devices from torchrun, and refuse another number.

    Args:
        trainer: Options of the trainer.

    Raises:
        ErasureError: If ``--trainer.devices`` is another number than torchrun's.
    """
    ranks = launched_ranks()
    if ranks is None:
        return
    here, nodes = ranks
    if trainer.devices == "auto":
        trainer.devices = here
        trainer.num_nodes = nodes
    elif str(trainer.devices).isdecimal() and int(trainer.devices) != here:
        raise ErasureError(
            f"torchrun has started {here} processes on this machine, and --trainer.devices is"
            f" {trainer.devices}. Set --trainer.devices {here}, or leave the option out."
        )


def _numbers() -> tuple[str, str]:
    """Rank among all processes and among those of this machine; "0" where no launcher sets it."""
    known = os.environ
    slurm = {} if known.get("SLURM_JOB_NAME") in _INTERACTIVE else known
    # torchrun has precedence, since SLURM may have started it.
    rank = known.get("RANK", slurm.get("SLURM_PROCID", "0"))
    return rank, known.get("LOCAL_RANK", slurm.get("SLURM_LOCALID", "0"))
