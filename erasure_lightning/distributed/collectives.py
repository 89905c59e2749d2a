"""Collectives over the ranks of a run; a single process gets its own values back."""

from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn

_T = TypeVar("_T")


def _is_distributed() -> bool:
    """Whether there is more than one rank."""
    return (
        distributed.is_available()
        and distributed.is_initialized()
        and distributed.get_world_size() > 1
    )


def rank() -> int:
    """This rank's number."""
    return distributed.get_rank() if _is_distributed() else 0


def all_gather_items(items: Sequence[_T]) -> list[_T]:
    """The items of all ranks, in rank order, on every rank; every rank must call it."""
    if not _is_distributed():
        return list(items)
    parts: list[list[_T]] = [[] for _ in range(distributed.get_world_size())]
    distributed.all_gather_object(parts, list(items))
    return [item for part in parts for item in part]


def gather_on_first_rank(value: _T) -> list[_T]:
    """The values of all ranks, in rank order, on rank 0 for saving; an empty list elsewhere.

    Tensors are moved to the CPU. Every rank must call it.
    """
    own: _T = _on_cpu(value)
    if not _is_distributed():
        return [own]
    parts = [own] * distributed.get_world_size() if rank() == 0 else []
    distributed.gather_object(own, parts or None)
    return parts


def _on_cpu(value: Any) -> Any:
    """A nested value with its tensors on the CPU; another rank may not have the device."""
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if isinstance(value, dict):
        return {key: _on_cpu(part) for key, part in value.items()}
    return [_on_cpu(part) for part in value] if isinstance(value, list) else value


def of_this_rank(parts: Sequence[_T]) -> _T | None:
    """This rank's part of a result of `gather_on_first_rank`; None if there were fewer ranks."""
    return parts[rank()] if rank() < len(parts) else None


def broadcast(tensors: Iterable[Tensor]) -> None:
    """Copies rank 0's values to all ranks, in place.

    Every rank must call it, with tensors of the same shapes.
    """
    for tensor in tensors if _is_distributed() else ():
        distributed.broadcast(tensor.detach(), 0)


def average_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Averages gradients over all ranks; a parameter without a gradient on any rank has none.

    Every rank must call it after each backward. Accumulated gradients that were averaged before are
    equal on all ranks and do not change.
    """
    if not _is_distributed() or not parameters:
        return
    device = parameters[0].device
    has = torch.tensor([p.grad is not None for p in parameters], device=device, dtype=torch.uint8)
    distributed.all_reduce(has, distributed.ReduceOp.MAX)
    moved = [
        parameter for parameter, any_grad in zip(parameters, has.tolist(), strict=True) if any_grad
    ]
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in moved]
    if not moved:
        return
    joined = torch.cat([grad.flatten() for grad in grads])
    distributed.all_reduce(joined)
    joined /= distributed.get_world_size()
    parts = joined.split_with_sizes([grad.numel() for grad in grads])
    for parameter, part in zip(moved, parts, strict=True):
        parameter.grad = part.view_as(parameter)
