"""Loads a method or an attack, and says so where its package takes long to import."""

import sys
from threading import Timer
from typing import Any

from erasure_lightning.cli.rank import first
from erasure_lightning.registry import Offer, load_offer

#: Seconds after which somebody who waits wants to know for what.
PATIENCE = 5.0


def load(offer: Offer) -> Any:
    """`load_offer`, with a line on stderr if it takes longer than `PATIENCE`.

    Raises:
        ErasureError: If it cannot be imported, or is something else.
    """
    timer = Timer(PATIENCE, _tell, [offer])
    timer.daemon = True
    timer.start()
    try:
        return load_offer(offer)
    finally:
        timer.cancel()


def _tell(offer: Offer) -> None:
    module = offer.target.partition(":")[0]
    if first():  # once, however many processes import it
        what = f"{offer.name} from {offer.package} ({module})"
        print(
            f"erasure: still importing {what} after {PATIENCE:g} s; Ctrl-C stops it.",
            file=sys.stderr,
        )
