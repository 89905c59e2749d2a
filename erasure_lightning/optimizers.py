"""Optimizers of an edit, by the names that a config gives them."""

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Literal

from torch import nn
from torch.distributed.tensor import DTensor
from torch.optim import Adam, Optimizer

from erasure_lightning.errors import ErasureError

#: Adam with moments in float32, or (bitsandbytes) in 8 bits, for which a weight's state takes 2 bytes instead of 8.
Kind = Literal["adam", "adam8bit"]


def make_optimizer(kind: Kind, parameters: Sequence[nn.Parameter], lr: float) -> Optimizer:
    """An optimizer of parameters.

    Args:
        kind: Which.
        parameters: What it moves.
        lr: Its rate, above 0.

    Raises:
        ErasureError: If its package is not installed, or it cannot move weights that a strategy has split.
    """
    if kind == "adam":
        return Adam(parameters, lr=lr)
    check_eight_bits(split=any(isinstance(parameter, DTensor) for parameter in parameters))
    from bitsandbytes.optim import Adam8bit

    made: Optimizer = Adam8bit(parameters, lr=lr)
    return made


def check_eight_bits(split: bool) -> None:
    """Raise where moments cannot be in 8 bits.

    Args:
        split: Whether a strategy has split what is to be moved.

    Raises:
        ErasureError: If it has, or the package is not installed.
    """
    if split:
        raise ErasureError(
            "optimizer adam8bit needs whole weights; found some that the strategy has split. Leave the optimizer at "
            "adam, whose state is split with them."
        )
    if find_spec("bitsandbytes") is None:
        raise ErasureError(
            "optimizer adam8bit needs the package bitsandbytes, which is not installed. "
            "pip install 'erasure-lightning[bitsandbytes]', or leave the optimizer at adam."
        )
