"""Precision of weights."""

from collections.abc import Iterable
from itertools import chain
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

#: Precision of a frozen model: ``int8`` is ``bfloat16`` with layers stored in 8 bits.
BaseDtype = Literal["float32", "bfloat16", "int8"]

_M = TypeVar("_M", bound=nn.Module)


def arithmetic_dtype(base_dtype: BaseDtype) -> torch.dtype:
    """The precision in which a frozen model is computed."""
    return torch.float32 if base_dtype == "float32" else torch.bfloat16


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
