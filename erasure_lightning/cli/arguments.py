"""The parser of the light commands, which must not pay for jsonargparse."""

import argparse
from typing import NoReturn

from erasure_lightning.errors import ErasureError


class Arguments(argparse.ArgumentParser):
    """An argparse parser whose complaints are errors like all others."""

    def error(self, message: str) -> NoReturn:
        """Raise it.

        Raises:
            ErasureError: Always.
        """
        raise ErasureError(f"{self.prog}: {message}.")


def count(text: str) -> int:
    """A whole number of at least 1.

    Raises:
        ArgumentTypeError: If it is none.
    """
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"needs a whole number of at least 1, found {text!r}")
    return int(text)
