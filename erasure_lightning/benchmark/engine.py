"""Runs cells as processes of their own, several side by side: a crash of one harms no other."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from threading import Event
from typing import NamedTuple

from erasure_lightning.benchmark.jobs import Job, Status
from erasure_lightning.errors import ErasureError
from erasure_lightning.files.locks import FolderLockedError, lock_folder
from erasure_lightning.files.writing import write_atomically

#: What a cell's commands are given to.
PROGRAM = (sys.executable, "-m", "erasure_lightning")

#: Seconds between two looks at a child; those it has to save and leave when it is told to.
LOOK, LEAVE = 0.2, 60.0

#: What is locked in the folder of a cell while a process works on it.
CLAIM_FILE = ".claim"

#: Seconds between two looks at a cell that another process works on.
WAIT = 2.0

#: How an error of `erasure` begins.
OURS = "erasure: error: "


class Done(NamedTuple):
    """What became of a cell.

    Args:
        cell: The cell.
        status: How far it is now.
        message: Why it failed, empty where it did not.
        seconds: How long it took.
    """

    cell: Job
    status: Status
    message: str
    seconds: float


class Engine:
    """Brings cells to their end.

    Args:
        jobs: How many side by side, at least 1.
        threads: Of torch in each.
    """

    def __init__(self, jobs: int, threads: int) -> None:
        self.jobs = jobs
        self.environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        self._stop = Event()
        self._children: set[subprocess.Popen[bytes]] = set()

    def run(self, cells: Sequence[Job]) -> Iterator[Done]:
        """Run what is missing of each, and tell of each as it ends.

        Children hear of an interruption from here alone: each saves what it has and leaves before
        it is passed on.

        Raises:
            ErasureError: If joblib is not installed.
        """
        try:
            from joblib import Parallel, delayed
        except ModuleNotFoundError as error:
            raise ErasureError(
                "erasure benchmark needs joblib; found none. Install it: pip install"
                " 'erasure-lightning[benchmark]'."
            ) from error
        side_by_side = Parallel(
            self.jobs, prefer="threads", return_as="generator_unordered", pre_dispatch="all"
        )
        try:
            elsewhere = []
            for cell, done in side_by_side(delayed(self._attempt)(cell) for cell in cells):
                if done:
                    yield done
                else:
                    elsewhere.append(cell)
            if elsewhere:
                print(
                    f"Waiting for {len(elsewhere)} cells that another process works on.", flush=True
                )
            yield from side_by_side(delayed(self._await)(cell) for cell in elsewhere)
        finally:
            self._stop.set()
            while self._children:
                time.sleep(LOOK)

    def _attempt(self, cell: Job) -> tuple[Job, Done | None]:
        """Run what is missing of a cell, unless another process works on it."""
        start = time.monotonic()
        try:
            with lock_folder(cell.run.root, CLAIM_FILE) as lock:
                message = "" if self._stop.is_set() else self._commands(cell, lock)
        except FolderLockedError:
            return cell, None
        return cell, Done(cell, cell.status, message, time.monotonic() - start)

    def _await(self, cell: Job) -> Done:
        """The same once the other process has left it."""
        while (done := self._attempt(cell)[1]) is None:
            if self._stop.wait(WAIT):
                return Done(cell, cell.status, "", 0.0)
        return done

    def _commands(self, cell: Job, lock: list[int]) -> str:
        """One command after the other until nothing is missing; why that came to nothing, empty if
        it did not.
        """
        cell.settle()
        before: list[str] | None = None
        while command := cell.command():
            if self._stop.is_set():
                return ""
            failed = f"erasure {command[0]} left nothing behind" if command == before else ""
            failed = failed or self._command(cell, command, lock)
            if failed and not self._stop.is_set():
                write_atomically(cell.failure, f"{failed}\n".encode())
                return failed
            cell.settle()
            before = command
        cell.failure.unlink(missing_ok=True)
        return ""

    def _command(self, cell: Job, command: list[str], lock: list[int]) -> str:
        """Run one; its last words where it fails."""
        cell.clear()
        with cell.log.open("ab") as log:
            log.write(f"$ erasure {' '.join(command)}\n".encode())
            log.flush()
            begun = log.tell()
            child = subprocess.Popen(
                [*PROGRAM, *command],
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=self.environment,
                start_new_session=True, pass_fds=lock,
            )  # fmt: skip
            self._children.add(child)
            try:
                code = self._wait(child)
            finally:
                self._children.discard(child)
        return (
            last_words(cell.log.read_bytes()[begun:].decode(errors="replace"), code) if code else ""
        )

    def _wait(self, child: "subprocess.Popen[bytes]") -> int:
        try:
            while child.poll() is None:
                if self._stop.wait(LOOK):
                    return _leave(child)
        except BaseException:  # a single job runs in the thread that hears of interruptions
            _leave(child)
            raise
        return child.wait()


def _leave(child: "subprocess.Popen[bytes]") -> int:
    """Tell a child to save and leave; its exit code."""
    child.terminate()  # SIGINT is ignored by what a shell's background job starts
    try:
        return child.wait(LEAVE)
    except subprocess.TimeoutExpired:
        child.kill()
        return child.wait()


def last_words(said: str, code: int) -> str:
    """Why a command failed: its signal, else the last error of ours in what it said, else its last
    line.
    """
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    told = [line.removeprefix(OURS) for line in lines if line.startswith(OURS)]
    return (told or lines or [f"exit code {code}"])[-1]
