"""Heartbeats that the ranks of a run exchange."""

import os
import socket
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from erasure_lightning.errors import ErasureError

#: Parts of the paths of torch's files in which a rank waits for others.
_WAITING = ("torch/distributed/", "torch/nn/parallel/", "torch/autograd/graph.py")

HOST = socket.gethostname()


def _machine() -> str:
    """Host name, boot and process namespace: where a process id means the same process."""
    parts = [HOST]
    with suppress(OSError):  # only Linux has the two files
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(str(os.stat("/proc/self/ns/pid").st_ino))
    return " ".join(parts)


MACHINE = _machine()


class Heartbeat(NamedTuple):
    """State of a rank as it last reported it.

    Args:
        number: Count of its reports.
        batches: Count of its finished batches.
        step: Its optimizer step.
        line: The line of code its main thread is at.
        waits: Whether that line waits for other ranks.
        pid: Its process.
        host: Its machine, for the user.
        machine: Its machine as `MACHINE` identifies it.
        left: Why it left the run; empty while it runs.
        code: Its exit code then.
    """

    number: int
    batches: int
    step: int
    line: str
    waits: bool
    pid: int
    host: str
    machine: str
    left: str = ""
    code: int = 0

    @property
    def dead(self) -> bool:
        """Whether its process is known to have ended: one of this machine."""
        if self.machine != MACHINE:
            return False
        try:
            os.kill(self.pid, 0)
            state = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]
        except ProcessLookupError:
            return True
        except OSError:  # no such table on this system
            return False
        return state in "ZX"  # ended, but its parent has not yet waited for it


def current_line() -> tuple[str, bool]:
    """The line that the main thread is at, and whether it waits there for other ranks."""
    frame = sys._current_frames()[threading.main_thread().ident or 0]
    path = frame.f_code.co_filename
    line = f"{'/'.join(Path(path).parts[-3:])}:{frame.f_lineno}, in {frame.f_code.co_name}"
    return line, any(part in path for part in _WAITING)


def summary(error: BaseException) -> tuple[str, int]:
    """One line for an error, and the exit code it leads to."""
    ours = isinstance(error, ErasureError) or not isinstance(error, Exception)
    code = getattr(error, "exit_code", 2 if isinstance(error, ErasureError) else 1)
    return str(error) or type(error).__name__ if ours else f"{type(error).__name__}: {error}", code
