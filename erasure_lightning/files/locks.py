"""A lock on a folder: of several processes, one at a time writes into it."""

import errno
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from erasure_lightning.errors import ErasureError
from erasure_lightning.files.writing import is_temporary

#: Lock file of the commands that write a run or an attack.
RUNNING_FILE = ".running"

#: Seconds to wait for a lock file that its owner is just removing.
_PATIENCE = 0.1

#: Errors of file systems without locks.
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}


class FolderLockedError(ErasureError):
    """Another process holds the lock of a folder."""


@contextmanager
def lock_folder(folder: Path, file: str = RUNNING_FILE) -> Iterator[list[int]]:
    """Lock a folder against other processes.

    The operating system drops the lock with the last process that has the lock file open, so a
    killed process leaves no stale one. Where the file system has no locks, a warning is printed
    and the folder is not locked.

    Args:
        folder: Created with its parents where it does not exist, and removed again if it is left
            empty, with the parents that were created.
        file: Name of the lock file in it. Who holds `RUNNING_FILE` also removes what killed
            processes left half-written.

    Yields:
        Open file descriptors; a child process that inherits them (``pass_fds``) holds the lock too.

    Raises:
        FolderLockedError: If another process holds the lock.
        ErasureError: If the folder cannot be created or written into.
    """
    from filelock import FileLock, Timeout  # here, because light commands import this module

    created = [parent for parent in folder.parents if not parent.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(folder, error) from error
    path = folder / file
    descriptors: list[int] = []
    lock = FileLock(
        path, timeout=_PATIENCE, poll_interval=_PATIENCE / 10, on_acquired=descriptors.append
    )
    try:
        lock.acquire()
    except Timeout as error:
        raise _locked(path) from error
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise _unwritable(folder, error) from error
        _warn_of_no_locks(folder)
    try:
        path.write_text(_owner())
        if file == RUNNING_FILE:
            _remove_unfinished(folder)
        yield descriptors
    finally:
        with suppress(OSError):  # it has been moved or removed together with the folder
            path.unlink()
            for empty in (folder, *created):
                empty.rmdir()
        lock.release()


def _owner() -> str:
    """This process, for the errors of others."""
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    return f"process {os.getpid()} on {socket.gethostname()}, since {since}"


def _warn_of_no_locks(folder: Path) -> None:
    print(
        f"erasure: warning: the file system of {folder} has no locks; let no other command write"
        " there meanwhile.",
        file=sys.stderr,
    )


def _unwritable(folder: Path, error: OSError) -> ErasureError:
    return ErasureError(
        f"A run needs a folder that it can write into; found {folder} ({error.strerror}). Choose"
        " another folder."
    )


def _locked(path: Path) -> FolderLockedError:
    owner = ""
    with suppress(OSError):
        owner = path.read_text()
    return FolderLockedError(
        f"{path.parent} is being written to by {owner or 'another process'}. Wait until it has"
        " ended, or choose another folder."
    )


def _remove_unfinished(folder: Path) -> None:
    """Remove files that killed processes left half-written; with whole weights, gigabytes each."""
    names = ("checkpoints", "samples", "original", "edited")
    inside = (file for name in names for file in folder.glob(f"{name}/*"))
    for file in [*folder.iterdir(), *inside]:
        if is_temporary(file):
            file.unlink(missing_ok=True)
