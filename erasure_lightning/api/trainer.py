"""Lightning's trainer, made for a function of the Python API."""

from collections.abc import Callable, Iterable
from typing import Any

from lightning import Trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback

from erasure_lightning.errors import ErasureError
from erasure_lightning.files.arguments import constructing
from erasure_lightning.training.base import ErasureModule
from erasure_lightning.training.gradient import GradientErasure


def make_trainer(function: Callable[..., Any], **arguments: Any) -> Trainer:
    """The trainer that a function needs.

    Args:
        function: Which passes the arguments on.
        arguments: Arguments of `Trainer`.

    Raises:
        ErasureError: If one is unknown, or Lightning refuses its value, in Lightning's words.
    """
    try:
        with constructing(Trainer, function):
            return Trainer(**arguments)
    except (ValueError, MisconfigurationException) as error:
        raise ErasureError(str(error)) from error


def default_steps(module: ErasureModule) -> int:
    """Steps of a fit by default: the paper's for each concept; a closed form takes one."""
    if isinstance(module, GradientErasure):
        return module.default_steps * len(module.concepts)
    return 1


def require_different_states(callbacks: Iterable[Callback]) -> None:
    """Raise for callbacks whose states Lightning cannot keep apart in a checkpoint.

    Args:
        callbacks: The user's.

    Raises:
        ErasureError: If two that have a state are of one class and equal arguments.
    """
    seen = set()
    for callback in callbacks:
        if type(callback).state_dict is Callback.state_dict:
            continue
        if callback.state_key in seen:
            name = type(callback).__name__
            raise ErasureError(
                f"A run needs each {name} with other arguments, by which a checkpoint keeps their"
                " states apart; found two with equal ones. Leave one out, or change an argument."
            )
        seen.add(callback.state_key)
