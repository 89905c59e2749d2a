"""Short hashes of weights, by which a model and its components are recognised."""

import hashlib
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn


def fingerprint(module: nn.Module, dtype: torch.dtype | None = None) -> str:
    """`digest` of a module's weights, in their order."""
    return digest(module.state_dict(), dtype)


def digest(tensors: Mapping[str, Tensor], dtype: torch.dtype | None = None) -> str:
    """A short hash of tensors: names, shapes and the first values of each.

    Args:
        tensors: By name; their order counts.
        dtype: A precision that values are rounded to first; by default they are taken as they are.
    """
    hashed = hashlib.sha256()
    for name, value in tensors.items():
        hashed.update(f"{name}{tuple(value.shape)}".encode())
        first = value.flatten()[:64]
        hashed.update(first.to(dtype or first.dtype).double().cpu().numpy().tobytes())
    return hashed.hexdigest()[:16]


def widen(parameters: Iterable[Tensor]) -> None:
    """Give parameters that are about to change float32 at least, in place; bfloat16 would swallow
    small steps.
    """
    for parameter in parameters:
        parameter.data = parameter.data.to(torch.promote_types(parameter.dtype, torch.float32))
