"""Precision of weights."""

from collections.abc import Iterable
from itertools import chain
from typing import TypeVar

import torch
from torch import Tensor, nn

_M = TypeVar("_M", bound=nn.Module)


def in_precision(module: _M, dtype: torch.dtype) -> _M:
    """The module, its floating-point values converted unless all have the precision already."""
    values = chain(module.parameters(), module.buffers())
    if all(value.dtype == dtype for value in values if value.is_floating_point()):
        return module
    return module.to(dtype)


def promote_to_float32(parameters: Iterable[Tensor]) -> None:
    """Convert parameters to float32 in place; float64 stays.

    In bfloat16 the steps of an optimizer would be rounded away.
    """
    for parameter in parameters:
        parameter.data = parameter.data.to(torch.promote_types(parameter.dtype, torch.float32))
