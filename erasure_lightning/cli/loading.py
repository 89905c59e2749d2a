"""Loads a method, and says so where its package takes long to import."""

import os
import sys
from threading import Timer
from typing import TYPE_CHECKING

from erasure_lightning.registry import Method, load_method

if TYPE_CHECKING:  # a listing must not pay for torch
    from erasure_lightning.module import ErasureModule

#: Seconds after which somebody who waits wants to know for what.
PATIENCE = 5.0


def load(method: Method) -> type["ErasureModule"]:
    """`load_method`, with a line on stderr if it takes longer than `PATIENCE`.

    Raises:
        ErasureError: If it cannot be imported, or is something else.
    """
    timer = Timer(PATIENCE, _tell, [method])
    timer.daemon = True
    timer.start()
    try:
        return load_method(method)
    finally:
        timer.cancel()


def _tell(method: Method) -> None:
    module = method.target.partition(":")[0]
    if os.environ.get("LOCAL_RANK", "0") == "0":  # once, however many processes import it
        what = f"{method.name} from {method.package} ({module})"
        print(f"erasure: still importing {what} after {PATIENCE:g} s; Ctrl-C stops it.", file=sys.stderr)
