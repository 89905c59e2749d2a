"""`ErasureError`: the exception for mistakes of the user."""

from collections.abc import Iterator
from contextlib import contextmanager


class ErasureError(Exception):
    """A mistake that the user can correct: what is needed, what was found, and what to do.

    The command line prints its message as one line and exits with code 2; everything else that is
    raised is a defect.
    """


@contextmanager
def wrap_errors(title: str) -> Iterator[None]:
    """Turns any error of the libraries into an `ErasureError` of one line with ``title``."""
    try:
        yield
    except ErasureError:
        raise
    except Exception as error:  # the libraries document no error classes
        first = next(iter(str(error).strip().splitlines()), "no reason was given")
        raise ErasureError(
            f"The {title} could not be loaded: {type(error).__name__}: {first}"
        ) from error
