"""Imports a class of a package, with a message where that takes long."""

import sys
from threading import Timer
from typing import Any

from erasure_lightning.cli.rank import is_first_process
from erasure_lightning.registry import Offer, load_offer

#: Seconds of importing after which a message is printed.
NOTICE_SECONDS = 5.0


def load_with_notice(offer: Offer) -> Any:
    """Import a class with `load_offer`, with a line on stderr after `NOTICE_SECONDS` seconds.

    Args:
        offer: The class.

    Raises:
        ErasureError: If it cannot be imported, or is something else.
    """
    timer = Timer(NOTICE_SECONDS, _print_waiting, [offer])
    timer.daemon = True
    timer.start()
    try:
        return load_offer(offer)
    finally:
        timer.cancel()


def _print_waiting(offer: Offer) -> None:
    module = offer.target.partition(":")[0]
    if is_first_process():  # once, however many processes import it
        name = f"{offer.name} from {offer.package} ({module})"
        print(
            f"erasure: still importing {name} after {NOTICE_SECONDS:g} s; Ctrl-C stops it.",
            file=sys.stderr,
        )
