"""Optimizers of an edit, by the names that a config gives them."""

import math
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Literal

from torch import nn
from torch.distributed.tensor import DTensor
from torch.optim import Adam, AdamW, Optimizer

from erasure_lightning.errors import ErasureError

#: Adam with moments in float32, with decoupled weight decay, or (bitsandbytes) with moments in 8
#: bits, for which a weight's state takes 2 bytes instead of 8.
OptimizerName = Literal["adam", "adamw", "adam8bit"]

#: What a learning rate does behind its warm-up: it stays, or falls along a cosine to 0 at the end
#: of the run.
Schedule = Literal["constant", "cosine"]

#: Weight decay of each optimizer where none is given; AdamW's is PyTorch's own.
DECAY = {"adam": 0.0, "adamw": 0.01, "adam8bit": 0.0}


def make_optimizer(
    kind: OptimizerName,
    parameters: Sequence[nn.Parameter],
    lr: float,
    weight_decay: float | None = None,
) -> Optimizer:
    """An optimizer of parameters.

    Args:
        kind: Which.
        parameters: What it moves.
        lr: Its rate, above 0.
        weight_decay: At least 0; decoupled from the gradient with ``adamw``. `DECAY` by default.

    Raises:
        ErasureError: If its package is not installed, or it cannot move weights that a strategy has
            split.
    """
    decay = DECAY[kind] if weight_decay is None else weight_decay
    if kind == "adam8bit":
        check_eight_bits(split=any(isinstance(parameter, DTensor) for parameter in parameters))
        from bitsandbytes.optim import Adam8bit

        made: Optimizer = Adam8bit(parameters, lr=lr, weight_decay=decay)
        return made
    return (AdamW if kind == "adamw" else Adam)(parameters, lr=lr, weight_decay=decay)


def check_eight_bits(split: bool) -> None:
    """Raise where moments cannot be in 8 bits.

    Args:
        split: Whether a strategy has split what is to be moved.

    Raises:
        ErasureError: If it has, or the package is not installed.
    """
    if split:
        raise ErasureError(
            "optimizer adam8bit needs whole weights; found some that the strategy has split. Leave"
            " the optimizer at adam, whose state is split with them."
        )
    if find_spec("bitsandbytes") is None:
        raise ErasureError(
            "optimizer adam8bit needs the package bitsandbytes, which is not installed. "
            "pip install 'erasure-lightning[bitsandbytes]', or leave the optimizer at adam."
        )


def warm_cosine(warmup: int, total: int) -> Callable[[int], float]:
    """Factor of the learning rate at a step: linear to 1 over ``warmup`` steps, then a cosine to 0
    at ``total``.
    """

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        share = (step - warmup) / max(total - warmup, 1)
        return 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))

    return factor


def rate_factor(schedule: Schedule, warmup: int, total: int) -> Callable[[int], float]:
    """Factor of the learning rate at a step, 0..1.

    Args:
        schedule: What follows the warm-up.
        warmup: Steps of linear rise from 0 to 1, at least 0.
        total: Steps of the run.
    """
    if schedule == "cosine":
        return warm_cosine(warmup, total)
    return lambda step: min((step + 1) / warmup, 1.0) if warmup else 1.0
