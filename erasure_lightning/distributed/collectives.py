"""What the ranks of a run found, brought together; alone, a rank's own."""

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


def all_gather_items(mine: Sequence[_T]) -> list[_T]:
    """The items of every rank, in rank order; the same list on all of them. Every rank must call
    it.
    """
    if not _is_distributed():
        return list(mine)
    parts: list[list[_T]] = [[] for _ in range(distributed.get_world_size())]
    distributed.all_gather_object(parts, list(mine))
    return [item for part in parts for item in part]


def gather_on_first_rank(mine: _T) -> list[_T]:
    """What every rank has, in rank order, for rank 0 to save, with tensors on the CPU; the others
    get nothing of it.

    Every rank must call it.
    """
    here: _T = _on_cpu(mine)
    if not _is_distributed():
        return [here]
    parts = [here] * distributed.get_world_size() if rank() == 0 else []
    distributed.gather_object(here, parts or None)
    return parts


def _on_cpu(value: Any) -> Any:
    """A value whose tensors, however deep, are on the CPU: another rank's device is no place for
    them.
    """
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if isinstance(value, dict):
        return {key: _on_cpu(part) for key, part in value.items()}
    return [_on_cpu(part) for part in value] if isinstance(value, list) else value


def of_this_rank(parts: Sequence[_T]) -> _T | None:
    """This rank's part of what was `gather_on_first_rank`, perhaps from other ranks; ``None`` where it had
    none.
    """
    return parts[rank()] if rank() < len(parts) else None


def broadcast(tensors: Iterable[Tensor]) -> None:
    """Give every rank what rank 0 holds, in place. Every rank must call it, with tensors of the
    same shapes.
    """
    for tensor in tensors if _is_distributed() else ():
        distributed.broadcast(tensor.detach(), 0)


def average_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Give every rank the mean of all ranks' gradients; a parameter that no rank has one for keeps
    none.

    Every rank must call it behind each backward: what was averaged before is alike on all, and
    stays.
    """
    if not _is_distributed() or not parameters:
        return
    has = torch.tensor(
        [p.grad is not None for p in parameters], device=parameters[0].device, dtype=torch.uint8
    )
    distributed.all_reduce(has, distributed.ReduceOp.MAX)
    moved = [parameter for parameter, given in zip(parameters, has.tolist(), strict=True) if given]
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in moved]
    if not moved:
        return
    together = torch.cat([grad.flatten() for grad in grads])
    distributed.all_reduce(together)
    parts = (together / distributed.get_world_size()).split_with_sizes(
        [grad.numel() for grad in grads]
    )
    for parameter, part in zip(moved, parts, strict=True):
        parameter.grad = part.view_as(parameter)
