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
    """A failure of the run: the line for the user, and the exit code."""

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
    """State of a rank as it last reported it."""

    sent: float  # seconds of its own clock
    batches: int  # that it has finished
    step: int  # of its optimizer
    line: str  # of code that its main thread is at
    waits: bool  # for other ranks, at that line
    pid: int
    host: str
    node: int  # of the launcher that started it
    message: str = ""  # of the failure with which it has left
    code: int | None = None  # with which it has left, `None` while it runs

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
