"""Optimizers and learning-rate schedules of gradient methods, by their names in a config."""

import math
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from typing import Any, Literal

from torch import nn
from torch.distributed.tensor import DTensor
from torch.optim import Adam, AdamW, Optimizer

from erasure_lightning.errors import ErasureError

#: Adam, Adam with decoupled weight decay, or Adam of bitsandbytes, whose moments have 8 bits: 2
#: bytes of state a weight in place of 8.
OptimizerName = Literal["adam", "adamw", "adam8bit"]

#: Learning rate after the warm-up: constant, or falling along a cosine to 0 at the end of the run.
Schedule = Literal["constant", "cosine"]

#: Default weight decay of each optimizer; AdamW's is PyTorch's own.
DECAY = {"adam": 0.0, "adamw": 0.01, "adam8bit": 0.0}


def make_optimizer(
    kind: OptimizerName, groups: Sequence[dict[str, Any]], weight_decay: float | None = None
) -> Optimizer:
    """Optimizer over groups of parameters.

    Args:
        kind: Its name in a config.
        groups: Parameters to train ``params`` and their learning rate ``lr``, of each group.
        weight_decay: At least 0; decoupled from the gradient with ``adamw``. `DECAY` by default.

    Raises:
        ErasureError: If its package is not installed, or it cannot train sharded weights.
    """
    decay = DECAY[kind] if weight_decay is None else weight_decay
    if kind == "adam8bit":
        parameters = [parameter for group in groups for parameter in group["params"]]
        check_eight_bits(split=any(isinstance(parameter, DTensor) for parameter in parameters))
        from bitsandbytes.optim import Adam8bit

        optimizer: Optimizer = Adam8bit(groups, weight_decay=decay)
        return optimizer
    return (AdamW if kind == "adamw" else Adam)(groups, weight_decay=decay)


def check_eight_bits(split: bool) -> None:
    """Raise unless `adam8bit` can be used.

    Args:
        split: Whether a strategy has sharded the parameters to train.

    Raises:
        ErasureError: If it has, or bitsandbytes is not installed.
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


def groups_by_rate(
    parameters: Mapping[str, nn.Parameter], rates: Mapping[str, float]
) -> list[dict[str, Any]]:
    """Groups of an optimizer: parameters of one learning rate each.

    Args:
        parameters: Parameters to train, by name.
        rates: Learning rate of each, by name.
    """
    return [
        {"params": [parameters[name] for name in rates if rates[name] == rate], "lr": rate}
        for rate in dict.fromkeys(rates.values())
    ]


def rate_factor(schedule: Schedule, warmup: int, total: int) -> Callable[[int], float]:
    """Factor of the learning rate at a step, 0..1.

    The schedules of ``diffusers.optimization`` warm up by ``step / warmup``, so that the first
    step of a run would move no weight.

    Args:
        schedule: What follows the warm-up.
        warmup: Steps of linear rise to 1, at least 0.
        total: Steps of the run, warm-up included.
    """

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        if schedule == "constant":
            return 1.0
        progress = (step - warmup) / max(total - warmup, 1)
        return 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))

    return factor
