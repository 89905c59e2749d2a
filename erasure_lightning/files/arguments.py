"""Wrong keywords of a constructor as one line."""

import inspect
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from erasure_lightning.errors import ErasureError
from erasure_lightning.files.words import did_you_mean


@contextmanager
def constructing(cls: type, function: Callable[..., Any]) -> Iterator[None]:
    """Context that turns a ``TypeError`` of a class's constructor into one line.

    Args:
        cls: The class.
        function: What was called, and passes its further keywords on to the constructor.

    Raises:
        ErasureError: If an argument is unknown, with a similar one, or missing.
    """
    try:
        yield
    except TypeError as error:
        match = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        if repeated := re.search(r"multiple values for keyword argument '(\w+)'", str(error)):
            message = f"{function.__name__} sets {repeated[1]} of {cls.__name__}; leave it out."
        elif match is None:
            message = f"{cls.__name__} cannot be made of these arguments: {error}."
        else:
            owners = f"Neither {function.__name__} nor {cls.__name__}"
            hint = did_you_mean(match[1], _parameters(function, *cls.__mro__))
            message = f"{owners} has an argument {match[1]!r}.{hint}"
        raise ErasureError(message) from error


def _parameters(function: Callable[..., Any], *classes: type) -> set[str]:
    """Names of the keywords of a function and of constructors."""
    callables = [function, *(vars(cls)["__init__"] for cls in classes if "__init__" in vars(cls))]
    parameters = (p for each in callables for p in inspect.signature(each).parameters.values())
    return {p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
