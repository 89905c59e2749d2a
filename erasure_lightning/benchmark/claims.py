"""Claims: of several processes that share a benchmark's folder, one at a time works on a cell."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FILE = ".claim"


@contextmanager
def claim(folder: Path) -> Iterator[int | None]:
    """Claim a folder, or find it claimed.

    The claim is a lock on an open file: the system drops it when the last process that has the file open is gone, so
    that no kill leaves one behind. A child that inherits the file keeps the claim for as long as it lives.

    Args:
        folder: Made where it does not exist.

    Yields:
        The open file, None where another process has the claim.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / FILE).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
        else:
            yield file.fileno()
