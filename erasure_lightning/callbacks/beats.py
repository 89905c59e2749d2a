"""What the ranks of a run tell each other of themselves."""

import os
import socket
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

#: Files of torch in whose innermost frame a rank waits for others.
_WAITING = ("torch/distributed/", "torch/nn/parallel/", "torch/autograd/graph.py")

#: What tells apart machines, and containers on one, of the same name; without such files, as on macOS, a name must do.
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
        died: Whether its process had ended before that beat was read, which so is the last that ever comes.
    """

    beat: Beat
    heard: float
    moved: float
    died: bool = False

    def next(self, beat: Beat, now: float, died: bool) -> "Seen":
        """What is known after one more look, at which this beat was there."""
        heard = self.heard if beat.number == self.beat.number else now
        return Seen(beat, heard, self.moved if beat.moves == self.beat.moves else now, died)


def place() -> tuple[str, bool]:
    """The line that the main thread is at, and whether it waits there for other ranks."""
    frame = sys._current_frames()[threading.main_thread().ident or 0]
    path = frame.f_code.co_filename
    line = f"{'/'.join(Path(path).parts[-3:])}:{frame.f_lineno}, in {frame.f_code.co_name}"
    return line, any(part in path for part in _WAITING)


def _machine() -> str:
    parts = [HOST]
    for file in _IDENTITY:
        with suppress(OSError):
            parts.append(str(os.stat(file).st_ino) if "/ns/" in file else Path(file).read_text().strip())
    return " ".join(parts)


MACHINE = _machine()
