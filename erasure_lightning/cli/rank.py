"""Which of several processes this is, before any of them has met the others; imports nothing."""

import os

#: What launchers tell a process: torchrun's number among all, SLURM's, and (Lightning's own) that among the machine's.
_VARIABLES = ("RANK", "SLURM_PROCID", "LOCAL_RANK")


def first() -> bool:
    """Whether this is the process that speaks for all."""
    return all(os.environ.get(name, "0") == "0" for name in _VARIABLES)
