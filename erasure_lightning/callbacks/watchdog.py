"""Ends a distributed run in which a rank fails, dies or hangs, and names that rank."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from lightning import Trainer
from lightning.pytorch.callbacks import Callback
from torch import distributed

from erasure_lightning.callbacks.interrupt import SIGNALS, at_once
from erasure_lightning.callbacks.rank_status import (
    HOST,
    MACHINE,
    Heartbeat,
    current_line,
    summary,
)
from erasure_lightning.checks import require
from erasure_lightning.distributed.lightning_internals import take_launched

#: Seconds between two heartbeats, and without one after which a rank counts as stopped or dead.
BEAT = 1.0
SILENCE = 120.0

#: Seconds that ranks have at least to start and find each other.
_START_SECONDS = 300.0

#: Seconds that a rank whose collective failed waits for the cause, and ranks have to leave.
CAUSE = 6.0
LEAVE = 10.0

#: Process that started the other ranks of a machine; it may be gone before they look.
_LAUNCHER = "ERASURE_LAUNCHER"

#: Exit codes of interrupted processes, and what the command returns for them.
_INTERRUPTED = {code: 128 + number for number in SIGNALS for code in (128 + number, -number)}


class Failure(NamedTuple):
    """Why the run cannot go on.

    Args:
        message: For the user; empty where another process prints it.
        code: Exit code.
        reporters: Ranks that find the same; the lowest prints it.
    """

    message: str
    code: int = 1
    reporters: Sequence[int] = ()


class Watchdog(Callback):
    """Ends the ranks of a run with one line on the first that fails, dies or hangs.

    torchrun and Lightning's launcher end the others without a reason, or with the traceback of
    their collectives; process groups time out after half an hour, and ``monitored_barrier`` names a
    rank only at a barrier of gloo. So each rank sends heartbeats through a connection of its own to
    the store in which the ranks found each other. Does nothing in a run of one rank.

    Args:
        timeout: Seconds without a finished batch on any rank after which the run hangs, above 0.

    Raises:
        ErasureError: If ``timeout`` is not above 0.
    """

    def __init__(self, timeout: float = 1500.0) -> None:
        require("Watching over the ranks", above=0, **{"--hang_timeout": timeout})
        self.timeout = timeout
        self._silence = min(timeout, SILENCE)
        self._over = threading.Event()
        self._children: list[subprocess.Popen[bytes]] = []
        self._store: Any = None
        self._store_error: Exception | None = None
        self._batches = 0
        self._sent = 0
        # Seconds of this process: no peer counts as silent while it is stopped itself (Ctrl-Z).
        self._clock = 0.0
        self._answered: float | None = None
        self._peers: dict[int, Heartbeat] = {}
        self._heard: dict[int, float] = {}
        self._moved: dict[int, float] = {}
        self._dead: set[int] = set()
        self._farewell = ("", 0)
        self._reported = False

    def _count(self, *_: Any, **__: Any) -> None:
        self._batches += 1

    on_train_batch_end = on_validation_batch_end = on_test_batch_end = on_predict_batch_end = _count

    @contextmanager
    def watching(self, trainer: Trainer) -> Iterator[None]:
        """Watch from before the ranks start until the last has ended.

        An error that rank 0 prints is marked ``reported``.
        """
        if trainer.world_size == 1:
            yield
            return
        self._begin(trainer)
        try:
            yield
        except BaseException as error:
            if isinstance(error, RuntimeError):  # a collective fails where a peer has died
                self._judge.join(CAUSE)
            self._leave(*summary(error))
            error.reported = self._reported  # type: ignore[attr-defined]
            raise
        else:
            self._leave("finished", 0)
        finally:
            os.environ.pop(_LAUNCHER, None)

    def _begin(self, trainer: Trainer) -> None:
        self._trainer = trainer
        launcher = None if distributed.is_torchelastic_launched() else os.environ.get(_LAUNCHER)
        self._parent = int(launcher or os.getppid())
        if not trainer.local_rank:
            os.environ[_LAUNCHER] = str(os.getpid())
        # Two threads, because the store does not answer while its process is stopped.
        self._talk = threading.Thread(target=self._exchange, name="heartbeat", daemon=True)
        self._judge = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._talk.start()
        self._judge.start()

    def _leave(self, reason: str, code: int) -> None:
        self._farewell = reason, code
        self._over.set()
        self._judge.join()
        self._talk.join(LEAVE + BEAT)
        for child in self._children if code else ():
            child.kill()

    def _exchange(self) -> None:
        """Send and receive heartbeats; no other thread uses the store."""
        try:
            while not self._over.wait(BEAT):
                if self._connected():
                    self._send()
                    self._receive()
            if self._store is not None:
                self._send(*self._farewell)
                self._reported = bool(self._trainer.global_rank) and 0 in self._alive()
                until = time.monotonic() + LEAVE
                while self._trainer.is_global_zero and self._running() and time.monotonic() < until:
                    time.sleep(BEAT / 10)
                    self._receive()
        except Exception as error:  # torch reports a lost store as RuntimeError
            self._store_error = error

    def _connected(self) -> bool:
        if self._store is None and distributed.is_initialized():
            self._answered = self._clock
            address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
            # torch's own connection is locked while the main thread waits in the store
            store = distributed.TCPStore(*address, is_master=False, wait_for_workers=False)  # type: ignore[attr-defined]
            attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")  # torchrun's store stays
            self._store = distributed.PrefixStore(f"heartbeat {attempt}", store)  # type: ignore[attr-defined]
        return self._store is not None

    def _send(self, left: str = "", code: int = 0) -> None:
        self._sent += 1
        where = *current_line(), os.getpid(), HOST, MACHINE
        beat = Heartbeat(self._sent, self._batches, self._trainer.global_step, *where, left, code)
        self._store.set(str(self._trainer.global_rank), json.dumps(beat))

    def _receive(self) -> None:
        now, peers = self._clock, dict(self._peers)
        for rank in range(self._trainer.world_size):
            known = peers.get(rank)
            dead = known is not None and known.dead  # before its last heartbeat is read
            if self._store.check([str(rank)]):
                beat = Heartbeat(*json.loads(self._store.get(str(rank))))
                if known is None or known.number != beat.number:
                    self._heard[rank] = now
                if known is None or known.batches != beat.batches:
                    self._moved[rank] = now
                if dead:
                    self._dead.add(rank)
                peers[rank] = beat
        self._peers, self._answered = peers, now

    def _running(self) -> list[int]:
        return [r for r, beat in self._peers.items() if not (beat.left or beat.dead)]

    def _alive(self) -> list[int]:
        """Ranks that can still print: a silent one cannot, well before it counts as dead."""
        since = (self._answered or 0.0) - self._silence / 2
        return [rank for rank in self._running() if self._heard[rank] > since]

    def _watch(self) -> None:
        while not self._over.wait(BEAT):
            self._clock += BEAT
            if failure := self._failure():
                own = self._trainer.global_rank
                prints = own <= min(failure.reporters, default=own)
                # The main thread may be about to print the same; and the reporter goes first.
                if not self._over.wait(BEAT if prints else 3 * BEAT):
                    self._end(failure, prints)

    def _end(self, failure: Failure, prints: bool) -> None:
        """End the process, whatever its main thread waits for; files are written atomically."""
        if failure.message and prints:
            front = "" if failure.code > 128 else "error: "
            text = " ".join(failure.message.split())
            print(f"\nerasure: {front}{text}", file=sys.stderr, flush=True)
        for child in self._children:
            child.kill()
        os._exit(failure.code)

    def _failure(self) -> Failure | None:
        self._children += take_launched(self._trainer)
        if self._trainer.local_rank and os.getppid() != self._parent:
            return Failure(f"The process that started rank {self._trainer.global_rank} is gone.")
        if self._answered is None:
            late = self._clock > max(self.timeout, _START_SECONDS)
            text = f"The ranks have not found each other within {self._clock:.0f} s."
            return self._ended_early() or (Failure(text) if late else None)
        return self._lost_store() or self._lost_rank() or self._ended_early() or self._hang()

    def _ended_early(self) -> Failure | None:
        """A rank started here that has ended before its first heartbeat."""
        for rank, child in enumerate(self._children, start=self._trainer.global_rank + 1):
            code = 0 if rank in self._peers else child.poll()
            if code in _INTERRUPTED:
                return Failure(at_once(self._trainer), _INTERRUPTED[code])
            if code:
                how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
                return Failure(f"Rank {rank} ended while it started ({how}).")
        return None

    def _lost_store(self) -> Failure | None:
        """The process that holds the store has ended or is stopped."""
        agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        owner = "torchrun, on the first machine," if agent else self._name(0)
        near = [r for r in self._alive() if self._peers[r].machine == MACHINE and (r or agent)]
        if isinstance(self._store_error, RuntimeError):
            return Failure(f"{owner} is gone, through which the ranks find each other.", 1, near)
        if self._store_error is not None:
            return Failure(f"{owner} cannot be heard ({summary(self._store_error)[0]}).")
        silent = self._clock - (self._answered or 0.0)
        if silent <= self._silence:
            return None
        since = f"for {silent:.0f} s, since step {self._trainer.global_step}"
        text = f"{owner} does not answer {since}: it is stopped, or its machine is gone."
        return Failure(text, 1, near)

    def _lost_rank(self) -> Failure | None:
        """A rank that has failed, died or fallen silent."""
        now, alive = self._answered or 0.0, self._alive()
        for rank, beat in self._peers.items():
            if beat.left and beat.code:  # rank 0 prints its own error
                return Failure(f"Rank {rank}: {beat.left}" if rank else "", beat.code, alive)
            who, since = self._name(rank), f"since step {beat.step}: it"
            if not beat.left and rank in self._dead:
                return Failure(f"{who} is gone {since} was killed, or it crashed.", 1, alive)
            silent = now - self._heard[rank]
            if not beat.left and silent > self._silence:
                text = f"has sent no heartbeat for {silent:.0f} s, {since} is stopped or dead."
                return Failure(f"{who} {text}", 1, alive)
        return None

    def _hang(self) -> Failure | None:
        """No rank finishes batches; those that do not wait for others are named."""
        now, peers = self._answered or 0.0, self._peers
        here = {rank: beat for rank, beat in peers.items() if not beat.left}
        since = min((now - self._moved[rank] for rank in here), default=0.0)
        if since <= self.timeout:
            return None
        missing = [rank for rank in range(self._trainer.world_size) if rank not in peers]
        named = missing or [rank for rank, beat in here.items() if not beat.waits] or list(here)
        places = "; ".join(
            f"rank {r} (process {b.pid} on {b.host}) is at {b.line}" for r, b in here.items()
        )
        which = " and ".join(map(str, named))
        return Failure(
            f"No rank has finished a batch for {since:.0f} s, since step"
            f" {self._trainer.global_step}: rank {which} may be stuck ({places}). Give slow batches"
            " more time with --hang_timeout.",
            1,
            self._alive(),
        )

    def _name(self, rank: int) -> str:
        known = self._peers.get(rank)
        return f"Rank {rank}" + (f" (process {known.pid} on {known.host})" if known else "")
