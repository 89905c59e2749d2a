"""Short hashes of weights, which identify a model and its components."""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn


def fingerprint(module: nn.Module, dtype: torch.dtype | None = None) -> str:
    """`hash_tensors` of a module's weights, in their order."""
    return hash_tensors(module.state_dict(), dtype)


def hash_tensors(tensors: Mapping[str, Tensor], dtype: torch.dtype | None = None) -> str:
    """A short hash of tensors: names, shapes and the first 64 values of each.

    Args:
        tensors: By name; their order counts.
        dtype: Precision that values are rounded to first; none by default.
    """
    hashed = hashlib.sha256()
    for name, value in tensors.items():
        hashed.update(f"{name}{tuple(value.shape)}".encode())
        first = value.flatten()[:64]
        hashed.update(first.to(dtype or first.dtype).double().cpu().numpy().tobytes())
    return hashed.hexdigest()[:16]


def edit_fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """A short hash of an edit's tensors."""
    return hash_tensors({name: tensors[name] for name in sorted(tensors)})
