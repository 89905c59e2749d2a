"""Short hashes of weights, which identify a model and its components."""

import hashlib
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn


def fingerprint(module: nn.Module, dtype: torch.dtype | None = None) -> str:
    """`hash_tensors` of a module's weights, in their order."""
    return hash_tensors(module.state_dict(), [dtype])[0]


def hash_tensors(
    tensors: Mapping[str, Tensor], dtypes: Iterable[torch.dtype | None] = (None,)
) -> list[str]:
    """Short hashes of tensors: names, shapes and the first 64 values of each.

    Args:
        tensors: By name; their order counts.
        dtypes: Precisions that values are rounded to first, None for their own; a hash for each.
    """
    names = [f"{name}{tuple(value.shape)}".encode() for name, value in tensors.items()]
    values = [value.flatten()[:64].cpu().double() for value in tensors.values()]
    joined = torch.cat([torch.empty(0, dtype=torch.double), *values])
    hashes = []
    for dtype in dtypes:
        hashed = hashlib.sha256()
        rounded = joined.to(dtype or joined.dtype).double().numpy()
        for name, value in zip(names, values, strict=True):
            hashed.update(name)
            hashed.update(rounded[: len(value)].tobytes())
            rounded = rounded[len(value) :]
        hashes.append(hashed.hexdigest()[:16])
    return hashes


def edit_fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """A short hash of an edit's tensors."""
    return hash_tensors({name: tensors[name] for name in sorted(tensors)})[0]
