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
