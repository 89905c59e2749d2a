"""Heartbeats that the ranks of a run exchange."""

import os
import sys
import threading
from pathlib import Path
from typing import NamedTuple

from erasure_lightning.callbacks.interrupt import Interrupted
from erasure_lightning.errors import ErasureError

#: Parts of the paths of torch's files in which a rank waits for others.
_WAITING = ("torch/distributed/", "torch/nn/parallel/", "torch/autograd/graph.py")


class Failure(NamedTuple):
    """A failure of the run.

    Args:
        message: The line for the user.
        code: The exit code.
    """

    message: str
    code: int = 1

    @classmethod
    def of(cls, error: BaseException, rank: int) -> "Failure":
        """The failure of a rank with an error; interruptions are those of all ranks."""
        code = getattr(error, "exit_code", 2 if isinstance(error, ErasureError) else 1)
        ours = isinstance(error, ErasureError | Interrupted)
        text = str(error) if ours else f"{type(error).__name__}: {error}"
        return cls(text if code > 128 else f"Rank {rank}: {text}", code)


class Heartbeat(NamedTuple):
    """State of a rank as it last reported it.

    Args:
        sent: When it was sent, in seconds of the rank's own clock.
        batches: Number of batches that the rank has finished.
        step: Step of its optimizer.
        line: Line of code that its main thread is at.
        waits: Whether it waits there for other ranks.
        pid: Number of its process.
        host: Name of its machine.
        node: Number of the launcher that started it.
        message: Line of the failure with which it has ended; empty without one.
        code: Exit code with which it has ended, `None` while it runs.
    """

    sent: float
    batches: int
    step: int
    line: str
    waits: bool
    pid: int
    host: str
    node: int
    message: str = ""
    code: int | None = None

    @property
    def process(self) -> str:
        """Its process, for the user."""
        return f"(process {self.pid} on {self.host})"

    def died(self, node: int) -> bool:
        """Whether its process has ended, as far as a process of the given node can see."""
        try:
            os.kill(self.pid, 0)
        except OSError:  # there is none, or another user's
            return self.node == node
        return False


def current_line() -> tuple[str, bool]:
    """The line that the main thread is at, and whether it waits there for other ranks."""
    frame = sys._current_frames()[threading.main_thread().ident or 0]
    path = frame.f_code.co_filename
    line = f"{'/'.join(Path(path).parts[-3:])}:{frame.f_lineno}, in {frame.f_code.co_name}"
    return line, any(part in path for part in _WAITING)
