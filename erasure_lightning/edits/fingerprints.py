"""Short hashes of weights, which identify a model and its components."""

import hashlib
import math
from collections.abc import Iterable, Mapping
from itertools import accumulate

import torch
from torch import Tensor, nn


def fingerprint(module: nn.Module) -> str:
    """`hash_tensors` of a module's weights, in their order."""
    return hash_tensors(module.state_dict())[0]


def hash_tensors(
    tensors: Mapping[str, Tensor], dtypes: Iterable[torch.dtype | None] = (None,)
) -> list[str]:
    """Short hashes of tensors: names, shapes and the first 64 values of each.

    Args:
        tensors: By name; their order counts.
        dtypes: Precisions that values are rounded to first, None for their own; a hash for each.
    """
    # Few calls of tensors: a device context, in which Lightning builds modules, slows each of them.
    shapes = [tuple(value.shape) for value in tensors.values()]
    names = [f"{name}{shape}".encode() for name, shape in zip(tensors, shapes, strict=True)]
    sizes = [8 * min(math.prod(shape), 64) for shape in shapes]
    ends = [*accumulate(sizes)]
    values = [value.flatten()[:64] for value in tensors.values()]
    if len({(value.dtype, value.device) for value in values}) > 1:
        values = [value.to("cpu", torch.double) for value in values]
    joined = torch.cat(values or [torch.empty(0)]).to("cpu", torch.double)
    hashes = []
    for dtype in dtypes:
        hashed = hashlib.sha256()
        rounded = joined.to(dtype or joined.dtype).double().numpy().tobytes()
        for name, size, end in zip(names, sizes, ends, strict=True):
            hashed.update(name + rounded[end - size : end])
        hashes.append(hashed.hexdigest()[:16])
    return hashes
