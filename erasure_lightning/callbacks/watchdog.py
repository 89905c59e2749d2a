"""Ends a distributed run in which a rank fails, dies or hangs, and names that rank."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lightning import Trainer
from lightning.pytorch.callbacks import Callback
from torch import distributed

from erasure_lightning.callbacks.interrupt import SIGNALS, at_once
from erasure_lightning.callbacks.rank_status import Failure, Heartbeat, current_line
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

#: Process that started the other ranks of a machine; it may end before they check.
_LAUNCHER = "ERASURE_LAUNCHER"


class Watchdog(Callback):
    """Ends the ranks of a run with one line on the first that fails, dies or hangs.

    torchrun and Lightning's launcher end the others without a reason, or with the traceback of
    their collectives; process groups time out after half an hour, and ``monitored_barrier`` names a
    rank only at a barrier of gloo. So each rank sends heartbeats through a connection of its own to
    the store in which the ranks found each other. The first process of a machine that finds a
    failure claims it by creating a file, and prints the line; the others end without one. Has
    no effect in a run of one rank.

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
        self._ending = threading.Lock()  # held by the thread that ends the process
        self._children: list[subprocess.Popen[bytes]] = []
        self._store: Any = None
        self._batches = 0
        # Seconds of this process: no peer counts as silent while it is stopped itself (Ctrl-Z).
        self._clock = 0.0
        self._answered: float | None = None
        self._progressed = 0.0
        self._peers: dict[int, Heartbeat] = {}
        self._received: dict[int, float] = {}
        self._dead: set[int] = set()

    def _count(self, *_: Any, **__: Any) -> None:
        self._batches += 1

    on_train_batch_end = on_validation_batch_end = on_test_batch_end = on_predict_batch_end = _count

    @contextmanager
    def watching(self, trainer: Trainer) -> Iterator[None]:
        """Watch from before the ranks start until the last has ended.

        An error is marked ``reported`` unless the caller has to print it: rank 0's, if it is the
        first failure on its machine. After an error the process ignores signals.
        """
        if trainer.world_size == 1:
            yield
            return
        self._begin(trainer)
        try:
            yield
        except BaseException as error:
            for number in SIGNALS:  # torchrun sends one to all ranks when the first has ended
                signal.signal(number, signal.SIG_IGN)
            if isinstance(error, RuntimeError):  # a collective fails where a peer has died
                self._watcher.join(CAUSE)
            self._ending.acquire()
            failure = Failure.of(error, trainer.global_rank)
            others = trainer.global_rank > 0
            if others and failure.code <= 128:  # rank 0 prints interruptions, which come to all
                self._report(failure)
            error.reported = others or not self._claims()  # type: ignore[attr-defined]
            self._leave(failure)
            raise
        else:
            self._ending.acquire()
            self._leave(Failure("", 0))
        finally:
            os.environ.pop(_LAUNCHER, None)

    def _begin(self, trainer: Trainer) -> None:
        self._trainer = trainer
        torchrun = distributed.is_torchelastic_launched()
        self._parent = int((not torchrun and os.environ.get(_LAUNCHER)) or os.getppid())
        self._attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        # All ranks of a run share the address of the rendezvous, whatever started them.
        cluster = trainer.strategy.cluster_environment  # type: ignore[attr-defined]
        name = f"erasure-{os.getuid()}-{cluster.main_address}-{cluster.main_port}-{self._attempt}"
        self._claim = Path(tempfile.gettempdir(), name)
        if not trainer.local_rank:
            os.environ[_LAUNCHER] = str(os.getpid())
            self._claim.unlink(missing_ok=True)  # of a run that met there before
        # Two threads, because the store does not answer while its process is stopped.
        self._exchanger = threading.Thread(target=self._exchange, name="heartbeat", daemon=True)
        self._watcher = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._exchanger.start()
        self._watcher.start()

    def _claims(self) -> bool:
        """Whether this process is the first of its machine to end the run."""
        try:
            self._claim.touch(exist_ok=False)
        except OSError as error:  # two lines are better than none where no file can be created
            return not isinstance(error, FileExistsError)
        return True

    def _report(self, failure: Failure) -> None:
        if self._claims():
            front = "" if failure.code > 128 else "error: "
            text = " ".join(failure.message.split())
            print(f"\nerasure: {front}{text}", file=sys.stderr, flush=True)

    def _leave(self, failure: Failure) -> None:
        """Send the last heartbeat, and end the ranks that were started here."""
        seconds = 3 * BEAT if failure.code else LEAVE
        self._last = failure
        self._until = time.monotonic() + seconds
        self._over.set()
        self._exchanger.join(seconds + BEAT)
        if failure.code and self._children:
            for child in self._children:
                child.kill()
            self._claim.unlink(missing_ok=True)

    def _exchange(self) -> None:
        """Send and receive heartbeats; no other thread uses the store."""
        trainer = self._trainer
        with suppress(RuntimeError):  # of torch, when the store has ended
            while not self._over.wait(BEAT):
                if self._connected():
                    self._send()
                    self._receive()
            if self._store is not None:
                self._send(*self._last)
                # The others need the store, which may end with the first rank.
                while trainer.is_global_zero and self._receive() and time.monotonic() < self._until:
                    time.sleep(BEAT / 10)

    def _connected(self) -> bool:
        if self._store is None and distributed.is_initialized():
            self._progressed = self._answered = self._clock
            address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
            # torch's own connection is locked while the main thread waits in the store
            store = distributed.TCPStore(*address, is_master=False, wait_for_workers=False)  # type: ignore[attr-defined]
            # torchrun's store outlives an attempt
            self._store = distributed.PrefixStore(f"heartbeat {self._attempt}", store)  # type: ignore[attr-defined]
        return self._store is not None

    def _send(self, message: str = "", code: int | None = None) -> None:
        trainer = self._trainer
        process = (os.getpid(), os.uname().nodename)
        counts = time.monotonic(), self._batches, trainer.global_step
        beat = Heartbeat(*counts, *current_line(), *process, trainer.node_rank, message, code)
        self._store.set(str(trainer.global_rank), json.dumps(beat))

    def _receive(self) -> bool:
        """Receive heartbeats; whether a rank still runs."""
        now = self._clock
        node = self._trainer.node_rank
        peers = dict(self._peers)
        # Looked up before the last heartbeats are read, which may hold the reason.
        dead = {rank for rank, beat in peers.items() if beat.died(node)}
        for rank in range(self._trainer.world_size):
            if self._store.check([str(rank)]):
                beat = Heartbeat(*json.loads(self._store.get(str(rank))))
                known = peers.get(rank)
                if known is None or known.batches != beat.batches:
                    self._progressed = now
                if known != beat:
                    self._received[rank] = now
                peers[rank] = beat
        self._peers = peers
        self._dead = dead
        self._answered = now
        return any(beat.code is None and rank not in dead for rank, beat in peers.items())

    def _watch(self) -> None:
        while not self._over.wait(BEAT):
            self._clock += BEAT
            self._children += take_launched(self._trainer)
            failure = next(self._failures(), None)
            # The main thread has a beat to leave with an error of its own.
            if failure and not self._over.wait(BEAT) and self._ending.acquire(blocking=False):
                self._report(failure)
                self._leave(failure)
                os._exit(failure.code)  # whatever the main thread waits for; files are atomic

    def _failures(self) -> Iterator[Failure]:
        """Known failures, the most certain first."""
        rank = self._trainer.global_rank
        clock = self._clock
        if self._trainer.local_rank and os.getppid() != self._parent:
            yield Failure(f"The process that started rank {rank} is gone.")
        if self._answered is not None:
            yield from self._lost_store(clock - self._answered)
            yield from self._lost_ranks(self._answered)
        yield from self._ended_early()
        if self._answered is not None:
            yield from self._hang(self._answered - self._progressed)
        elif clock > max(self.timeout, _START_SECONDS):
            yield Failure(f"The ranks have not found each other within {clock:.0f} s.")

    def _ended_early(self) -> Iterator[Failure]:
        """Ranks started here that have ended before their first heartbeat."""
        for rank, child in enumerate(self._children, start=self._trainer.global_rank + 1):
            code = child.poll()  # which reaps the process
            if code and rank not in self._peers:
                number = -code if code < 0 else code - 128
                if number in SIGNALS:
                    yield Failure(at_once(self._trainer), 128 + number)
                how = signal.Signals(number).name if code < 0 else f"exit code {code}"
                yield Failure(f"Rank {rank} ended while it started ({how}).")

    def _lost_store(self, silent: float) -> Iterator[Failure]:
        """The process that holds the store has ended or is stopped."""
        agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        owner = "torchrun, on the first machine," if agent else self._name(0)
        if not self._exchanger.is_alive():
            yield Failure(f"{owner} is gone, through which the ranks find each other.")
        if silent > self._silence:
            since = f"for {silent:.0f} s, since step {self._trainer.global_step}"
            why = "it is stopped, or its machine is gone."
            yield Failure(f"{owner} does not answer {since}: {why}")

    def _lost_ranks(self, now: float) -> Iterator[Failure]:
        """Ranks that have failed, died or stopped their heartbeats."""
        for rank, beat in self._peers.items():
            name = self._name(rank)
            since = f"since step {beat.step}: it"
            silent = now - self._received[rank]
            if beat.code:
                yield Failure(beat.message, beat.code)
            elif beat.code is None and rank in self._dead:
                yield Failure(f"{name} is gone {since} was killed, or it crashed.")
            elif beat.code is None and silent > self._silence:
                text = f"has sent no heartbeat for {silent:.0f} s, {since} is stopped or dead."
                yield Failure(f"{name} {text}")

    def _hang(self, seconds: float) -> Iterator[Failure]:
        """No rank finishes batches; those that do not wait for others are named."""
        if seconds > self.timeout:
            here = {rank: beat for rank, beat in sorted(self._peers.items()) if beat.code is None}
            missing = set(range(self._trainer.world_size)) - set(self._peers)
            busy = [rank for rank, beat in here.items() if not beat.waits]
            named = " and ".join(map(str, sorted(missing) or busy or here))
            lines = "; ".join(f"rank {r} {b.process} is at {b.line}" for r, b in here.items())
            yield Failure(
                f"No rank has finished a batch for {seconds:.0f} s, since step"
                f" {self._trainer.global_step}: rank {named} may be stuck ({lines}). Give slow"
                " batches more time with --hang_timeout."
            )

    def _name(self, rank: int) -> str:
        known = self._peers.get(rank)
        return f"Rank {rank} {known.process}" if known else f"Rank {rank}"
