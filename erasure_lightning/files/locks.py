"""Claims: of several processes that share a folder, one at a time works in it."""

import errno
import fcntl
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from erasure_lightning.errors import ErasureError
from erasure_lightning.files.writing import is_temporary

#: What a command of ours locks in the folder that it writes into, while it does.
RUNNING_FILE = ".running"

#: How file systems say that they have no locks.
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}


@contextmanager
def claim(folder: Path, file: str) -> Iterator[int | None]:
    """Claim a folder, or find it claimed.

    The claim is a lock on an open file: the system drops it when the last process that has the file
    open is gone, so that no kill leaves one behind. A child that inherits the file keeps the claim
    for as long as it lives. Where the file system has no locks, nothing is claimed, which is told.

    Args:
        folder: Made where it does not exist, and removed again if it is left empty.
        file: Name of the file in it; says who has the claim.

    Yields:
        The open file, None where another process has the claim.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / file
    descriptor = _locked(path)
    if descriptor is None:
        yield None
        return
    try:
        os.ftruncate(descriptor, 0)
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        os.write(
            descriptor, f"process {os.getpid()} on {socket.gethostname()}, since {since}".encode()
        )
        yield descriptor
    finally:
        with suppress(OSError):  # it has been moved or removed together with the folder
            path.unlink()
            folder.rmdir()
        os.close(descriptor)


def _locked(path: Path) -> int | None:
    """The file, open and locked; None where another process has the lock."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                os.close(descriptor)
                raise
            told = "has no locks; let no other command write there meanwhile"
            print(f"erasure: warning: the file system of {path.parent} {told}.", file=sys.stderr)
            return descriptor
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        os.close(descriptor)  # whoever had it removed it in between


@contextmanager
def working_in(folder: Path) -> Iterator[None]:
    """Have a folder to oneself, without what killed processes left half-written in it.

    Raises:
        ErasureError: If another process works there.
    """
    with claim(folder, RUNNING_FILE) as file:
        if file is None:
            who = ""
            with suppress(OSError):
                who = (folder / RUNNING_FILE).read_text()
            raise ErasureError(
                f"{folder} is being written to by {who or 'another process'}. Wait until it has"
                " ended, or choose another folder."
            )
        _sweep(folder)
        yield


def _sweep(folder: Path) -> None:
    """Remove what nobody will finish; with whole weights that is gigabytes a kill."""
    for file in [*folder.iterdir(), *folder.glob("checkpoints/*")]:
        if is_temporary(file):
            file.unlink(missing_ok=True)
