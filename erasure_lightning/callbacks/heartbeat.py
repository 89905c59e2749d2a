"""Tells of a rank that hangs, is gone or has failed, and ends the others, which would wait for it."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from lightning import Trainer
from lightning.pytorch.callbacks import Callback
from torch import distributed

from erasure_lightning.errors import ErasureError

#: Seconds between two beats; those for which a peer may be silent before it counts as gone.
BEAT, SILENCE = 1.0, 120.0

#: Seconds that ranks are given at least to start and find each other.
START = 300.0

#: Seconds that a rank whose collective failed waits to learn why, and that ranks are given to leave by themselves.
REASON, LEAVE = 5.0, 10.0

#: Files of torch in whose innermost frame a rank waits for others.
_WAITING = ("torch/distributed/", "torch/nn/parallel/", "torch/autograd/graph.py")

HOST = socket.gethostname()

#: Where the first rank of a machine tells those that it starts who it is: it may be gone before they look.
_LAUNCHER = "ERASURE_LAUNCHER"


class Beat(NamedTuple):
    """What a rank last said of itself.

    Args:
        number: How many it has sent.
        moves: How many batches it has finished.
        step: The optimizer's.
        place: The line its main thread is at.
        waits: Whether that line waits for other ranks.
        pid, host: Its process.
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
    left: str = ""
    code: int = 0


class Seen(NamedTuple):
    """A peer's last beat, and by this process's clock when it was new and when the peer last moved."""

    beat: Beat
    heard: float
    moved: float


class Trouble(NamedTuple):
    """Why the run cannot go on.

    Args:
        message: For the user.
        code: The exit code.
        alone: Whether this rank cannot know that another one says so.
    """

    message: str
    code: int = 1
    alone: bool = False


class Heartbeat(Callback):
    """Watches over the ranks of a run; where there is one rank, it does nothing.

    Each rank tells the others every second that it is there and what it does, over a connection of its own to the
    store in which the ranks found each other. If a rank dies or fails, or if for ``timeout`` seconds none has finished
    a batch, the rest end with one sentence that names it.

    Args:
        timeout: Seconds, above 0; by default less than the half hour after which torch ends in a traceback.

    Raises:
        ErasureError: If ``timeout`` is not above 0.
    """

    def __init__(self, timeout: float = 1500.0) -> None:
        if timeout <= 0:
            raise ErasureError(f"Watching over the ranks needs --hang_timeout above 0 seconds; found {timeout:g}.")
        self.timeout = timeout
        self._over = threading.Event()
        self._children: list[subprocess.Popen[bytes]] = []
        self._store: Any = None
        self._peers: dict[int, Seen] = {}
        self._moves = self._number = 0

    def on_train_batch_end(self, *_: Any) -> None:
        """A step is done."""
        self._moves += 1

    def on_test_batch_end(self, *_: Any) -> None:
        """Pictures are drawn."""
        self._moves += 1

    def on_validation_batch_end(self, *_: Any) -> None:
        """The same."""
        self._moves += 1

    def on_predict_batch_end(self, *_: Any) -> None:
        """The same."""
        self._moves += 1

    @contextmanager
    def watching(self, trainer: Trainer) -> Iterator[None]:
        """Watch from before the ranks are started until the last has ended."""
        if trainer.world_size == 1:
            yield
            return
        self._trainer, self._start = trainer, time.monotonic()
        self._parent = int(os.environ.get(_LAUNCHER, os.getppid()))
        if not trainer.local_rank:
            os.environ[_LAUNCHER] = str(os.getpid())
        thread = threading.Thread(target=self._watch, name="heartbeat", daemon=True)
        thread.start()
        try:
            yield
        except BaseException as error:
            if isinstance(error, RuntimeError):  # a collective fails where a peer has died: who, will be told
                thread.join(REASON)
            self._leave(thread, *_reason(error))
            raise
        self._leave(thread, "finished", 0)

    def _leave(self, thread: threading.Thread, why: str, code: int) -> None:
        """Tell the others that this rank goes, and see them off where they depend on it."""
        self._over.set()
        thread.join()
        until = time.monotonic() + LEAVE
        with suppress(RuntimeError):  # rank 0 holds the store, and may have gone
            if self._store is not None:
                self._send(why, code)
            while self._store is not None and self._needed() and time.monotonic() < until:
                time.sleep(BEAT / 10)
                self._listen()
        for child in self._children if code else ():
            child.kill()

    def _needed(self) -> bool:
        left = [seen.beat.left or _gone(seen.beat) for seen in self._peers.values()]
        return self._trainer.is_global_zero and not all(left)

    def _watch(self) -> None:
        while not self._over.wait(BEAT):
            trouble = self._trouble()
            if trouble and not self._over.wait(BEAT):  # where this rank is about to say the same, it may
                self._end(trouble)

    def _end(self, trouble: Trouble) -> None:
        """End the process, whatever its main thread waits for; files are written atomically."""
        others = [rank for rank, seen in self._peers.items() if not (seen.beat.left or _gone(seen.beat))]
        first = self._trainer.global_rank <= min(others, default=self._trainer.global_rank)
        if trouble.message and (first or trouble.alone):
            print(f"\nerasure: error: {' '.join(trouble.message.split())}", file=sys.stderr, flush=True)
        for child in self._children:
            child.kill()
        os._exit(trouble.code)

    def _trouble(self) -> Trouble | None:
        self._adopt()
        if self._trainer.local_rank and os.getppid() != self._parent:  # that of the first may be a shell that was left
            return Trouble(f"The process that started rank {self._trainer.global_rank} is gone.", alone=True)
        if self._store is None and not self._connect():
            return self._unborn()
        try:
            self._send()
            self._listen()
        except RuntimeError:  # as which torch tells of its store
            return Trouble("Rank 0 is gone, through which the ranks find each other.", alone=True)
        return self._lost() or self._stuck()

    def _adopt(self) -> None:
        """Take the ranks started here from Lightning's own watch, which would kill all of them without a word."""
        started = getattr(self._trainer.strategy.launcher, "procs", [])
        self._children += started
        started.clear()

    def _unborn(self) -> Trouble | None:
        """Before the ranks have found each other, those started here can be looked at alone."""
        for rank, child in enumerate(self._children, start=1):
            if code := child.poll():
                how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
                return Trouble(f"Rank {rank} ended while it started ({how}).")
        if (waited := time.monotonic() - self._start) > max(self.timeout, START):
            return Trouble(f"The ranks have not found each other within {waited:.0f} s.", alone=True)
        return None

    def _connect(self) -> bool:
        if not distributed.is_initialized():
            return False
        # A connection of its own: torch's is locked while the main thread waits for something in the store.
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        self._store = distributed.TCPStore(  # type: ignore[attr-defined]
            host, port, is_master=False, wait_for_workers=False
        )
        return True

    def _send(self, left: str = "", code: int = 0) -> None:
        self._number += 1
        place, waits = _place()
        now = Beat(self._number, self._moves, self._trainer.global_step, place, waits, os.getpid(), HOST, left, code)
        self._store.set(f"beat {self._trainer.global_rank}", json.dumps(now))

    def _listen(self) -> None:
        now = time.monotonic()
        for rank in range(self._trainer.world_size):
            if self._store.check([f"beat {rank}"]):
                beat = Beat(*json.loads(self._store.get(f"beat {rank}")))
                old = self._peers.get(rank, Seen(beat, now, now))
                heard = old.heard if beat.number == old.beat.number else now
                self._peers[rank] = Seen(beat, heard, old.moved if beat.moves == old.beat.moves else now)

    def _lost(self) -> Trouble | None:
        """A rank that failed, died, or no longer says anything."""
        now = time.monotonic()
        for rank, (beat, heard, _) in self._peers.items():
            who = f"Rank {rank} (process {beat.pid} on {beat.host})"
            if beat.left and beat.code:  # rank 0 tells of itself
                return Trouble(f"Rank {rank}: {beat.left}" if rank else "", beat.code)
            if not beat.left and _gone(beat):
                return Trouble(f"{who} is gone since step {beat.step}: it was killed, or it crashed.")
            if not beat.left and now - heard > min(self.timeout, SILENCE):
                return Trouble(
                    f"{who} has said nothing for {now - heard:.0f} s, since step {beat.step}: it is stopped or dead."
                )
        return None

    def _stuck(self) -> Trouble | None:
        """All ranks stand still; those that do not wait for others are to blame."""
        here = {rank: seen for rank, seen in self._peers.items() if not seen.beat.left}
        since = min((time.monotonic() - seen.moved for seen in here.values()), default=0.0)
        if since <= self.timeout:
            return None
        guilty = [rank for rank, seen in here.items() if not seen.beat.waits] or list(here)
        told = "; ".join(f"rank {r} (process {b.pid} on {b.host}) is at {b.place}" for r, (b, *_) in here.items())
        which = " and ".join(map(str, guilty))
        return Trouble(
            f"No rank has finished a batch for {since:.0f} s, since step {here[guilty[0]].beat.step}: rank {which} may "
            f"be stuck ({told}). Give slow batches more time with --hang_timeout."
        )


def _reason(error: BaseException) -> tuple[str, int]:
    """What is told of an error, and the exit code it leads to."""
    named = isinstance(error, Exception) and not isinstance(error, ErasureError)
    code = getattr(error, "exit_code", 2 if isinstance(error, ErasureError) else 1)
    return f"{type(error).__name__}: {error}" if named else str(error) or type(error).__name__, code


def _place() -> tuple[str, bool]:
    """The line that the main thread is at, and whether it waits there for other ranks."""
    frame = sys._current_frames()[threading.main_thread().ident or 0]
    path = frame.f_code.co_filename
    line = f"{'/'.join(Path(path).parts[-3:])}:{frame.f_lineno}, in {frame.f_code.co_name}"
    return line, any(part in path for part in _WAITING)


def _gone(beat: Beat) -> bool:
    """Whether the process is known not to run: it is of this machine, and has ended."""
    if beat.host != HOST:
        return False
    try:
        os.kill(beat.pid, 0)
        state = Path(f"/proc/{beat.pid}/stat").read_text().rpartition(")")[2].split()[0]
    except ProcessLookupError:
        return True
    except OSError:  # no such table on this system
        return False
    return state in "ZX"  # ended, but not yet taken note of by the process that started it
