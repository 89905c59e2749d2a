"""Lightning's trainer, made for a function of the Python API."""

from collections.abc import Callable
from typing import Any

from lightning import Trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException

from erasure_lightning.errors import ErasureError
from erasure_lightning.files.arguments import constructing


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
