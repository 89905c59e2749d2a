"""Tells of a rank that hangs, is gone or has failed, and ends the others, which would wait for it."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lightning import Trainer
from lightning.pytorch.callbacks import Callback
from torch import distributed

from erasure_lightning.callbacks.interrupt import SIGNALS, at_once
from erasure_lightning.callbacks.rank_status import (
    HOST,
    MACHINE,
    Beat,
    Seen,
    Trouble,
    place,
    reason,
)
from erasure_lightning.checks import require
from erasure_lightning.distributed.lightning_internals import take_launched

#: Seconds between two beats; those for which a peer may be silent before it counts as gone.
BEAT, SILENCE = 1.0, 120.0

#: Seconds that ranks are given at least to start and find each other.
START = 300.0

#: Seconds that a rank whose collective failed waits to learn why, and that ranks are given to leave
#: by themselves.
REASON, LEAVE = 6.0, 10.0

#: Where the first rank of a machine tells those that it starts who it is: it may be gone before
#: they look.
_LAUNCHER = "ERASURE_LAUNCHER"

#: How a process ends that was interrupted, by itself or by the signal, and the exit code that this
#: is for a command.
_INTERRUPTED = {code: 128 + number for number in SIGNALS for code in (128 + number, -number)}


class Watchdog(Callback):
    """Watches over the ranks of a run; where there is one rank, it does nothing.

    Each rank tells the others every second that it is there and what it does, over a connection of
    its own to the store in which the ranks found each other. If a rank dies or fails, or if for
    ``timeout`` seconds none has finished a batch, the rest end with one sentence that names it.

    Args:
        timeout: Seconds, above 0; by default less than the half hour after which torch ends in a
            traceback.

    Raises:
        ErasureError: If ``timeout`` is not above 0.
    """

    def __init__(self, timeout: float = 1500.0) -> None:
        require("Watching over the ranks", above=0, **{"--hang_timeout": timeout})
        self.timeout = timeout
        self._limit = min(timeout, SILENCE)
        self._over = threading.Event()
        self._children: list[subprocess.Popen[bytes]] = []
        self._store: Any = None
        self._peers: dict[int, Seen] = {}
        self._moves = self._number = 0
        # Seconds by this process's own beats: while it is stopped too (Ctrl-Z), no peer counts as
        # silent.
        self._clock = 0.0
        self._answered: float | None = None
        self._error: Exception | None = None
        self._farewell = ("", 0)
        self._met = 0.0
        self._failure = ""
        self._told = False

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
        """Watch from before the ranks are started until the last has ended.

        An error that this rank has told the first one of, which will print it, is marked as
        ``told``.
        """
        if trainer.world_size == 1:
            yield
            return
        self._begin(trainer)
        try:
            yield
        except BaseException as error:
            if isinstance(
                error, RuntimeError
            ):  # a collective fails where a peer has died: who, will be told
                self._failure = reason(error)[0].splitlines()[0]
                self._judge.join(REASON)
            self._leave(*reason(error))
            error.told = self._told  # type: ignore[attr-defined]
            raise
        else:
            self._leave("finished", 0)
        finally:
            os.environ.pop(_LAUNCHER, None)

    def _begin(self, trainer: Trainer) -> None:
        self._trainer = trainer
        told = None if distributed.is_torchelastic_launched() else os.environ.get(_LAUNCHER)
        self._parent = int(told or os.getppid())
        if not trainer.local_rank:
            os.environ[_LAUNCHER] = str(os.getpid())
        # The store does not answer while the process that holds it is stopped: who judges must not
        # be who asks.
        self._talk = threading.Thread(target=self._talking, name="heartbeat", daemon=True)
        self._judge = threading.Thread(target=self._judging, name="heartbeat's judge", daemon=True)
        self._talk.start()
        self._judge.start()

    def _leave(self, why: str, code: int) -> None:
        """Tell the others that this rank goes, and see them off where they depend on it."""
        self._farewell = why, code
        self._over.set()
        self._judge.join()
        self._talk.join(LEAVE + BEAT)
        for child in self._children if code else ():
            child.kill()

    def _talking(self) -> None:
        """All that is said and heard; nobody else uses the store."""
        try:
            while not self._over.wait(BEAT):
                if self._connected():
                    self._send()
                    self._listen()
            if self._store is not None:
                self._send(*self._farewell)
                self._told = bool(self._trainer.global_rank) and 0 in self._there()
                self._see_off()
        except (
            Exception
        ) as error:  # as a RuntimeError torch tells of its store; `_trouble` passes it on
            self._error = error

    def _see_off(self) -> None:
        until = time.monotonic() + LEAVE
        while self._trainer.is_global_zero and not self._all_left() and time.monotonic() < until:
            time.sleep(BEAT / 10)
            self._listen()

    def _all_left(self) -> bool:
        return all(seen.beat.left or seen.beat.gone for seen in self._peers.values())

    def _judging(self) -> None:
        while not self._over.wait(BEAT):
            self._clock += BEAT
            if trouble := self._trouble():
                speaks = self._trainer.global_rank <= min(
                    trouble.others, default=self._trainer.global_rank
                )
                # This rank may be about to say the same by itself; and no other goes before the
                # first has judged.
                if not self._over.wait(BEAT if speaks else 3 * BEAT):
                    self._end(trouble, speaks)

    def _end(self, trouble: Trouble, speaks: bool) -> None:
        """End the process, whatever its main thread waits for; files are written atomically."""
        if trouble.message and speaks:
            front = "" if trouble.interrupted else "error: "
            print(
                f"\nerasure: {front}{' '.join(trouble.message.split())}",
                file=sys.stderr,
                flush=True,
            )
        for child in self._children:
            child.kill()
        os._exit(trouble.code)

    def _there(self) -> list[int]:
        """Ranks that can still speak. One that falls silent cannot, well before it counts as gone."""
        now, peers = self._answered or 0.0, self._peers.items()
        heard = {rank: beat for rank, (beat, heard, *_) in peers if now - heard < self._limit / 2}
        return [rank for rank, beat in heard.items() if not (beat.left or beat.gone)]

    def _trouble(self) -> Trouble | None:
        self._adopt()
        if (
            self._trainer.local_rank and os.getppid() != self._parent
        ):  # that of the first may be a shell that was left
            return Trouble(f"The process that started rank {self._trainer.global_rank} is gone.")
        if self._answered is None:
            return self._fallen() or self._apart()
        now = self._answered
        found = (
            self._cut_off(self._clock - now)
            or self._lost(now)
            or self._fallen()
            or self._unheard(now)
        )
        return found or self._stuck(now)

    def _adopt(self) -> None:
        """Take the ranks started here from Lightning's own watch, which would kill all of them
        without a word.
        """
        self._children += take_launched(self._trainer)

    def _fallen(self) -> Trouble | None:
        """Before a rank has been heard of, it can be looked at where it was started."""
        for rank, child in enumerate(self._children, start=self._trainer.global_rank + 1):
            code = 0 if rank in self._peers else child.poll()
            if (
                code in _INTERRUPTED
            ):  # as this one is, but where its main thread waits for the others it cannot hear
                return Trouble(at_once(self._trainer), _INTERRUPTED[code])
            if code:
                how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
                return Trouble(f"Rank {rank} ended while it started ({how}).")
        return None

    def _apart(self) -> Trouble | None:
        if self._clock > max(self.timeout, START):
            return Trouble(f"The ranks have not found each other within {self._clock:.0f} s.")
        return None

    def _unheard(self, now: float) -> Trouble | None:
        """A rank that was stopped or died before its first beat, of which nothing but its number is
        known.
        """
        silent = [rank for rank in range(self._trainer.world_size) if rank not in self._peers]
        since = now - self._met
        if not silent or since <= (REASON / 2 if self._failure else self._limit):
            return None
        told = f"has never been heard of since the ranks met, {since:.0f} s ago"
        failure = f" Here: {self._failure}" if self._failure else ""
        return Trouble(
            f"Rank {silent[0]} {told}: it is stopped or dead.{failure}", others=self._there()
        )

    def _connected(self) -> bool:
        if self._store is None and distributed.is_initialized():
            self._answered = self._met = self._clock
            # A connection of its own: torch's is locked while the main thread waits for something
            # in the store.
            host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
            store = distributed.TCPStore(  # type: ignore[attr-defined]
                host, port, is_master=False, wait_for_workers=False
            )
            attempt = os.environ.get(
                "TORCHELASTIC_RESTART_COUNT", "0"
            )  # torchrun's store outlives those before
            self._store = distributed.PrefixStore(f"heartbeat {attempt}", store)  # type: ignore[attr-defined]
        return self._store is not None

    def _send(self, left: str = "", code: int = 0) -> None:
        self._number += 1
        here = *place(), os.getpid(), HOST, MACHINE
        now = Beat(self._number, self._moves, self._trainer.global_step, *here, left, code)
        self._store.set(str(self._trainer.global_rank), json.dumps(now))

    def _listen(self) -> None:
        peers, now = dict(self._peers), self._clock
        for rank in range(self._trainer.world_size):
            died = (
                rank in peers and peers[rank].beat.gone
            )  # asked first: its last word may come just before its end
            if self._store.check([str(rank)]):
                beat = Beat(*json.loads(self._store.get(str(rank))))
                peers[rank] = peers.get(rank, Seen(beat, now, now)).next(beat, now, died)
        self._peers, self._answered = peers, now

    def _cut_off(self, waited: float) -> Trouble | None:
        """The process that holds the store has ended or stands still, so no rank hears of those on
        other machines.
        """
        agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        who = "torchrun, on the first machine," if agent else self._who(0)
        near = [
            rank
            for rank in self._there()
            if self._peers[rank].beat.machine == MACHINE and (rank or agent)
        ]
        if isinstance(self._error, RuntimeError):
            return Trouble(f"{who} is gone, through which the ranks find each other.", others=near)
        if self._error is not None:
            return Trouble(f"{who} cannot be heard ({reason(self._error)[0]}).")
        if waited > self._limit:
            since = f"for {waited:.0f} s, since step {self._trainer.global_step}"
            return Trouble(
                f"{who} does not answer {since}: it is stopped, or its machine is gone.",
                others=near,
            )
        return None

    def _who(self, rank: int) -> str:
        known = self._peers.get(rank)
        return (
            f"Rank {rank} (process {known.beat.pid} on {known.beat.host})"
            if known
            else f"Rank {rank}"
        )

    def _lost(self, now: float) -> Trouble | None:
        """A rank that failed, died, or no longer says anything."""
        others = self._there()
        for rank, (beat, heard, _, died) in self._peers.items():
            if beat.left and beat.code:  # rank 0 tells of itself
                return Trouble(f"Rank {rank}: {beat.left}" if rank else "", beat.code, others)
            since = f"since step {beat.step}: it"
            if not beat.left and died:
                return Trouble(
                    f"{self._who(rank)} is gone {since} was killed, or it crashed.", others=others
                )
            if not beat.left and now - heard > self._limit:
                silent = f"has said nothing for {now - heard:.0f} s"
                return Trouble(
                    f"{self._who(rank)} {silent}, {since} is stopped or dead.", others=others
                )
        return None

    def _stuck(self, now: float) -> Trouble | None:
        """All ranks stand still; those that do not wait for others are to blame."""
        here = {rank: seen for rank, seen in self._peers.items() if not seen.beat.left}
        since = min((now - seen.moved for seen in here.values()), default=0.0)
        if since <= self.timeout:
            return None
        guilty = [rank for rank, seen in here.items() if not seen.beat.waits] or list(here)
        told = "; ".join(
            f"rank {r} (process {b.pid} on {b.host}) is at {b.place}" for r, (b, *_) in here.items()
        )
        which = " and ".join(map(str, guilty))
        return Trouble(
            f"No rank has finished a batch for {since:.0f} s, since step"
            f" {here[guilty[0]].beat.step}: rank {which} may be stuck ({told}). Give slow batches"
            " more time with --hang_timeout.",
            others=self._there(),
        )
