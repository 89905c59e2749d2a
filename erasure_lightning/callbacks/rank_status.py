"""What the ranks of a run tell each other of themselves, and the user of each other."""

import os
import socket
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from erasure_lightning.errors import ErasureError

#: Files of torch in whose innermost frame a rank waits for others.
_WAITING = ("torch/distributed/", "torch/nn/parallel/", "torch/autograd/graph.py")

#: What tells apart machines, and containers on one, of the same name; without such files, as on
#: macOS, a name must do.
_IDENTITY = ("/proc/sys/kernel/random/boot_id", "/proc/self/ns/pid")

HOST = socket.gethostname()


class Beat(NamedTuple):
    """What a rank last said of itself.

    Args:
        number: How many it has sent.
        moves: How many batches it has finished.
        step: The optimizer's.
        place: The line its main thread is at.
        waits: Whether that line waits for other ranks.
        pid, host: Its process, as a person looks for it.
        machine: Where its process number means something.
        left: Why it left, empty while it is there.
        code: Its exit code then.
    """

    number: int
    moves: int
    step: int
    place: str
    waits: bool
    pid: int
    host: str
    machine: str
    left: str = ""
    code: int = 0

    @property
    def gone(self) -> bool:
        """Whether the process is known not to run: it is of this machine, and has ended."""
        if self.machine != MACHINE:
            return False
        try:
            os.kill(self.pid, 0)
            state = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]
        except ProcessLookupError:
            return True
        except OSError:  # no such table on this system
            return False
        return state in "ZX"  # ended, but not yet taken note of by the process that started it


class Seen(NamedTuple):
    """A peer, as this process last saw it.

    Args:
        beat: Its last beat.
        heard: By this process's clock, when that was new.
        moved: And when the peer last finished a batch.
        died: Whether its process had ended before that beat was read, which so is the last that
            ever comes.
    """

    beat: Beat
    heard: float
    moved: float
    died: bool = False

    def next(self, beat: Beat, now: float, died: bool) -> "Seen":
        """What is known after one more look, at which this beat was there."""
        heard = self.heard if beat.number == self.beat.number else now
        return Seen(beat, heard, self.moved if beat.moves == self.beat.moves else now, died)


class Trouble(NamedTuple):
    """Why the run cannot go on.

    Args:
        message: For the user.
        code: The exit code.
        others: Ranks that are there to say the same; the first of all says it.
    """

    message: str
    code: int = 1
    others: Sequence[int] = ()

    @property
    def interrupted(self) -> bool:
        """Whether it is no trouble but somebody's wish."""
        return self.code > 128


def place() -> tuple[str, bool]:
    """The line that the main thread is at, and whether it waits there for other ranks."""
    frame = sys._current_frames()[threading.main_thread().ident or 0]
    path = frame.f_code.co_filename
    line = f"{'/'.join(Path(path).parts[-3:])}:{frame.f_lineno}, in {frame.f_code.co_name}"
    return line, any(part in path for part in _WAITING)


def reason(error: BaseException) -> tuple[str, int]:
    """What is told of an error, and the exit code it leads to."""
    named = isinstance(error, Exception) and not isinstance(error, ErasureError)
    code = getattr(error, "exit_code", 2 if isinstance(error, ErasureError) else 1)
    return f"{type(error).__name__}: {error}" if named else str(error) or type(error).__name__, code


def _machine() -> str:
    parts = [HOST]
    for file in _IDENTITY:
        with suppress(OSError):
            parts.append(
                str(os.stat(file).st_ino) if "/ns/" in file else Path(file).read_text().strip()
            )
    return " ".join(parts)


MACHINE = _machine()
