"""Precision of weights that are about to be trained."""

from collections.abc import Iterable

import torch
from torch import Tensor


def promote_to_float32(parameters: Iterable[Tensor]) -> None:
    """Convert parameters to float32 in place; float64 stays.

    In bfloat16 the steps of an optimizer would be rounded away.
    """
    for parameter in parameters:
        parameter.data = parameter.data.to(torch.promote_types(parameter.dtype, torch.float32))
