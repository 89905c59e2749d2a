"""Wrong arguments of a constructor as one line."""

from collections.abc import Iterator
from contextlib import contextmanager

from erasure_lightning.errors import ErasureError


@contextmanager
def constructing(name: str) -> Iterator[None]:
    """Context that turns a ``TypeError`` of a class's constructor into one line.

    Args:
        name: Name of the class.

    Raises:
        ErasureError: If an argument is unknown or missing.
    """
    try:
        yield
    except TypeError as error:
        raise ErasureError(f"{name} cannot be made of these arguments: {error}.") from error
