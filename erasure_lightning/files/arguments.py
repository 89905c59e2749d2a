"""Wrong keywords of a constructor, and values that are none of its choices, as one line."""

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from erasure_lightning.errors import ErasureError
from erasure_lightning.files.words import did_you_mean


@contextmanager
def constructing(
    cls: type, function: Callable[..., Any], hints: Mapping[str, str] | None = None
) -> Iterator[None]:
    """Context that turns a ``TypeError`` of a class's constructor into one line.

    Args:
        cls: The class.
        function: What was called, and passes its further keywords on to the constructor.
        hints: What to do about keywords that neither has, by keyword; by default a similar one is
            named.

    Raises:
        ErasureError: If an argument is unknown, with a similar one, missing, or set already.
    """
    try:
        yield
    except TypeError as error:
        match = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        if repeated := re.search(r"multiple values for keyword argument '(\w+)'", str(error)):
            message = f"{function.__name__} sets {repeated[1]} of {cls.__name__}; leave it out."
            if "__init__()" in str(error):  # of a base class
                message = f"{cls.__name__} sets {repeated[1]} itself; leave it out."
        elif match is None:
            message = f"{cls.__name__} cannot be made of these arguments: {error}."
        else:
            owners = f"Neither {function.__name__} nor {cls.__name__}"
            similar = did_you_mean(match[1], _parameters(function, *cls.__mro__))
            hint = (hints or {}).get(match[1], similar)
            message = f"{owners} has an argument {match[1]!r}.{hint}"
        raise ErasureError(message) from error


def require_choices(cls: type, arguments: Mapping[str, Any]) -> None:
    """Raises if an argument of a class is none of the values that its type, a `Literal`, names.

    Args:
        cls: The class; arguments of its bases' constructors are checked too.
        arguments: Values by the name of the argument.

    Raises:
        ErasureError: For the first.
    """
    annotations: dict[str, Any] = {}
    for base in cls.__mro__:
        if "__init__" in vars(base):
            parameters = inspect.signature(vars(base)["__init__"]).parameters
            annotations = {name: p.annotation for name, p in parameters.items()} | annotations
    for name, annotation in annotations.items():
        if name in arguments:
            require_choice(cls.__name__, annotation, name, arguments[name])


def require_choice(owner: str, annotation: Any, name: str, value: Any) -> None:
    """Raises if a value is none of those that a type, a `Literal`, names.

    Args:
        owner: What needs it, for the message.
        annotation: The type; values of another type than a `Literal` pass.
        name: Name of the argument.
        value: The value.

    Raises:
        ErasureError: If it is none of them, with a similar one.
    """
    choices = _choices(annotation)
    if choices and value not in choices:
        known = [str(choice) for choice in choices if choice is not None]
        raise ErasureError(
            f"{owner} needs one of {', '.join(known)} as {name}; found"
            f" {value!r}.{did_you_mean(str(value), known)}"
        )


def _parameters(function: Callable[..., Any], *classes: type) -> set[str]:
    """Names of the keywords of a function and of constructors."""
    callables = [function, *(vars(cls)["__init__"] for cls in classes if "__init__" in vars(cls))]
    parameters = (p for each in callables for p in inspect.signature(each).parameters.values())
    return {p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}


def _choices(annotation: Any) -> tuple[Any, ...]:
    """Values of a `Literal`, or of one or ``None``; none of another type."""
    united = get_origin(annotation) in (Union, UnionType)
    members = get_args(annotation) if united else (annotation,)
    if not all(member is NoneType or get_origin(member) is Literal for member in members):
        return ()
    return tuple(value for m in members for value in (get_args(m) or (None,)))
