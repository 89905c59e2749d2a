"""Checks of numbers from options, files and constructors, and of a server's host."""

import math
import socket
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

from erasure_lightning.errors import ErasureError

#: The largest seed of a torch generator.
MAX_SEED = 2**64 - 1


def require(
    owner: str,
    *,
    at_least: float = -math.inf,
    above: float = -math.inf,
    at_most: float = math.inf,
    below: float = math.inf,
    **numbers: float | None,
) -> None:
    """Raises unless numbers are numbers, finite and in a range.

    Args:
        owner: What needs them, for the message.
        at_least: Inclusive lower bound.
        above: Exclusive lower bound.
        at_most: Inclusive upper bound.
        below: Exclusive upper bound.
        numbers: The numbers by name; ``None`` (a default that is set later) passes.

    Raises:
        ErasureError: For the first that is none, out of range, NaN or infinite.
    """
    for name, value in numbers.items():
        if value is None:
            continue
        if not isinstance(value, Real):
            raise ErasureError(f"{owner} needs a number as {name}; found {value!r}.")
        if not abs(value) < math.inf:
            raise ErasureError(f"{owner} needs a finite {name}; found {value}.")
        if not (at_least <= value <= at_most and above < value < below):
            bounds = {"at least": at_least, "above": above, "at most": at_most, "below": below}
            text = " and ".join(
                f"{word} {bound}" for word, bound in bounds.items() if abs(bound) < math.inf
            )
            raise ErasureError(
                f"{owner} needs {name} {'of ' * text.startswith('at')}{text}; found {value}."
            )


def require_seed(owner: str, seed: int) -> None:
    """Raises unless a seed is valid for a torch generator.

    Raises:
        ErasureError: If it is out of range, or no whole number.
    """
    require(owner, at_least=0, at_most=MAX_SEED, seed=seed)
    if not isinstance(seed, Integral):
        raise ErasureError(f"{owner} needs a whole number as seed; found {seed!r}.")


def require_finite(owner: str, arguments: Mapping[str, Any]) -> None:
    """Raises if any of the arguments is NaN or infinite.

    Raises:
        ErasureError: For the first.
    """
    require(owner, **{name: value for name, value in arguments.items() if isinstance(value, float)})


def require_host(owner: str, host: str) -> None:
    """Raises unless a server of this machine can be bound to a host.

    Raises:
        ErasureError: If the name is unknown or the address is another machine's.
    """
    try:
        addresses = socket.getaddrinfo(host.strip("[]"), 0, type=socket.SOCK_STREAM)
        family, kind, _, _, address = addresses[0]
        with socket.socket(family, kind) as probe:
            probe.bind(address)
    except (OSError, UnicodeError) as error:
        raise ErasureError(
            f"{owner} needs an address of this machine as its host; found {host!r} ({error})."
        ) from error
