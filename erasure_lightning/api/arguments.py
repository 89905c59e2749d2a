"""Wrong arguments of a constructor as one line."""

from collections.abc import Iterator
from contextlib import contextmanager

from erasure_lightning.errors import ErasureError


@contextmanager
def constructing(name: str) -> Iterator[None]:
    """Turn a ``TypeError`` of a class of a name into an `ErasureError`."""
    try:
        yield
    except TypeError as error:
        raise ErasureError(f"{name} cannot be made of these arguments: {error}.") from error
