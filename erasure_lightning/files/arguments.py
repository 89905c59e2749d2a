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
    cls: type,
    function: Callable[..., Any] | None = None,
    hints: Mapping[str, str] | None = None,
) -> Iterator[None]:
    """Context that turns a ``TypeError`` of a class's constructor into one line.

    Args:
        cls: The class.
        function: What was called, and passes its further keywords on to the constructor, if any.
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
            message = f"{cls.__name__} sets {repeated[1]} itself; leave it out."
            if function and "__init__()" not in str(error):  # which would be of a base class
                message = f"{function.__name__} sets {repeated[1]} of {cls.__name__}; leave it out."
        elif match is None:
            message = f"{cls.__name__} cannot be made of these arguments: {error}."
        else:
            known = _parameters(*[function] if function else [], *cls.__mro__)
            hint = (hints or {}).get(match[1], did_you_mean(match[1], known))
            message = f"{cls.__name__} has no argument {match[1]!r}.{hint}"
            if function:
                owners = f"Neither {function.__name__} nor {cls.__name__}"
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


def _parameters(*callables: Any) -> set[str]:
    """Names of the keywords of functions, and of the constructors that classes have themselves."""
    functions = [vars(c).get("__init__") if isinstance(c, type) else c for c in callables]
    parameters = (p for f in functions if f for p in inspect.signature(f).parameters.values())
    return {p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}


def _choices(annotation: Any) -> tuple[Any, ...]:
    """Values of a `Literal`, or of one or ``None``; none of another type."""
    united = get_origin(annotation) in (Union, UnionType)
    members = get_args(annotation) if united else (annotation,)
    if not all(member is NoneType or get_origin(member) is Literal for member in members):
        return ()
    return tuple(value for m in members for value in (get_args(m) or (None,)))
