"""Runs each job in a process of its own, several in parallel; a crash ends only its own job."""

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from threading import Event
from typing import NamedTuple

from erasure_lightning.benchmark.jobs import Job, Status
from erasure_lightning.errors import ErasureError
from erasure_lightning.files.locks import FolderLockedError, lock_folder
from erasure_lightning.files.writing import write_atomically

#: Command line that a job's arguments are appended to.
_PROGRAM = (sys.executable, "-m", "erasure_lightning")

#: Seconds between two polls of a child process.
_POLL_SECONDS = 0.2

#: Seconds that a terminated child has to save its state before it is killed.
_GRACE_SECONDS = 60.0

#: Lock file in the folder of a job while a process works on it.
_LOCK_FILE = ".claim"

#: Seconds between two attempts to lock a job that another process works on.
_RETRY_SECONDS = 2.0

#: Errors that every other job would end with too.
_DISK_FULL = {errno.ENOSPC, errno.EDQUOT}

#: Prefix of the errors that `erasure` prints.
_ERROR_PREFIX = "erasure: error: "


class JobResult(NamedTuple):
    """How a job ended.

    Args:
        job: The job.
        status: Its status now.
        message: Why it failed; empty where it did not.
        seconds: How long it took.
    """

    job: Job
    status: Status
    message: str
    seconds: float


class Engine:
    """Runs jobs until no result is missing in their folders.

    Args:
        parallel: Number of jobs that run at the same time, at least 1.
        threads: Threads of torch in each.
    """

    def __init__(self, parallel: int, threads: int) -> None:
        self.parallel = parallel
        self.environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        self._stop = Event()

    def run(self, jobs: Sequence[Job]) -> Generator[JobResult, None, None]:
        """Run the missing commands of each job, and yield its result as it ends.

        A job whose folder cannot be used has failed. On an interruption, children are terminated
        from here alone; each saves its state and ends before the interruption is raised.

        Raises:
            ErasureError, OSError: If the disk is full; children end as on an interruption.
        """
        pool = ThreadPoolExecutor(self.parallel)
        try:
            locked = []
            for future in as_completed([pool.submit(self._try_job, job) for job in jobs]):
                job, result = future.result()
                if result:
                    yield result
                else:
                    locked.append(job)
            if locked:
                print(f"Waiting for {len(locked)} cells that another process works on.", flush=True)
            for waiting in as_completed([pool.submit(self._wait_for_job, job) for job in locked]):
                yield waiting.result()
        finally:
            self._stop.set()
            pool.shutdown(cancel_futures=True)

    def _try_job(self, job: Job) -> tuple[Job, JobResult | None]:
        """Run a job; the result is None if another process works on it."""
        start = time.monotonic()
        try:
            with lock_folder(job.run.root, _LOCK_FILE) as lock:
                message = "" if self._stop.is_set() else self._run_commands(job, lock)
        except FolderLockedError:
            return job, None
        except (ErasureError, OSError) as error:
            if _is_of_full_disk(error):
                raise
            with suppress(ErasureError):  # the folder itself may be what cannot be used
                write_atomically(job.failure, f"{error}\n".encode())
            return job, JobResult(job, Status.FAILED, str(error), time.monotonic() - start)
        return job, JobResult(job, job.status, message, time.monotonic() - start)

    def _wait_for_job(self, job: Job) -> JobResult:
        """Run a job as soon as the other process has released it."""
        while (result := self._try_job(job)[1]) is None:
            if self._stop.wait(_RETRY_SECONDS):
                return JobResult(job, job.status, "", 0.0)
        return result

    def _run_commands(self, job: Job, lock: list[int]) -> str:
        """Run a job's missing commands in turn; returns why one failed, empty if none did."""
        job.run.finish_measurement()
        job.link_parts()
        previous: list[str] | None = None
        while command := job.next_command():
            if self._stop.is_set():
                return ""
            if command == previous:
                message = f"erasure {command[0]} wrote no result"
            else:
                message = self._run_command(job, command, lock)
            if message and not self._stop.is_set():
                write_atomically(job.failure, f"{message}\n".encode())
                return message
            job.run.finish_measurement()
            previous = command
        job.failure.unlink(missing_ok=True)
        return ""

    def _run_command(self, job: Job, command: list[str], lock: list[int]) -> str:
        """Run one command; returns why it failed, empty if it did not."""
        job.run.discard_measurement()
        with job.log.open("ab") as log:
            log.write(f"$ erasure {' '.join(command)}\n".encode())
            log.flush()
            start = log.tell()
            child = subprocess.Popen(
                [*_PROGRAM, *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self.environment,
                start_new_session=True,
                pass_fds=lock,
            )
            code = self._wait(child)
        if code == 0:
            return ""
        return failure_message(job.log.read_bytes()[start:].decode(errors="replace"), code)

    def _wait(self, child: "subprocess.Popen[bytes]") -> int:
        while child.poll() is None:
            if self._stop.wait(_POLL_SECONDS):
                return _terminate(child)
        return child.wait()


def _is_of_full_disk(error: Exception) -> bool:
    """Whether an error, or the one it was raised from, is of a full disk."""
    cause = error if isinstance(error, OSError) else error.__cause__
    return isinstance(cause, OSError) and cause.errno in _DISK_FULL


def _terminate(child: "subprocess.Popen[bytes]") -> int:
    """Let a child save its state and end; returns its exit code."""
    child.terminate()  # not SIGINT: background jobs of a shell ignore it
    try:
        return child.wait(_GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        child.kill()
        return child.wait()


def failure_message(output: str, code: int) -> str:
    """Why a command failed: its signal, else its last error of ours, else its last line.

    Args:
        output: What the command printed.
        code: Its exit code, other than 0; negative for a signal.
    """
    if code < 0:
        names = {each.value: each.name for each in signal.Signals}  # no real-time signals
        return f"killed by {names.get(-code, f'signal {-code}')}"
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line.removeprefix(_ERROR_PREFIX) for line in lines if line.startswith(_ERROR_PREFIX)]
    return (errors or lines or [f"exit code {code}"])[-1]
