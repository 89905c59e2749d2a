"""Which of several processes this is, before any of them has met the others; imports nothing."""

import os

#: Jobs of SLURM whose numbers Lightning disregards: each process is a run of its own, or starts its
#: ranks by itself.
_INTERACTIVE = ("bash", "interactive")


def first() -> bool:
    """Whether this is the process that speaks for all."""
    return _numbers() == ("0", "0")


def prefix(together: bool = True) -> str | None:
    """What a process puts in front of an error that it meets.

    The first of all puts nothing there, the first of every other machine who it is. The other
    processes of a machine say nothing, since they meet what its first one does.

    Args:
        together: Whether the processes are ranks of one run; those that are not speak for
            themselves.

    Returns:
        The words, or ``None`` for a process that says nothing.
    """
    rank, local = _numbers()
    if first():
        return ""
    return f"rank {rank} on {os.uname().nodename}: " if local == "0" or not together else None


def started() -> tuple[int, int] | None:
    """How many processes torchrun has started on this machine, and on how many machines; elsewhere
    ``None``.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return None
    return int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["GROUP_WORLD_SIZE"])


def _numbers() -> tuple[str, str]:
    """This process's number among all, and among those of its machine; each "0" where nobody has
    told it.
    """
    known = os.environ
    slurm = {} if known.get("SLURM_JOB_NAME") in _INTERACTIVE else known
    rank = known.get(
        "RANK", slurm.get("SLURM_PROCID", "0")
    )  # torchrun's, which SLURM may have started, goes first
    return rank, known.get("LOCAL_RANK", slurm.get("SLURM_LOCALID", "0"))
