"""Peak memory of a block's backward."""

from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd import Function

from erasure_lightning.planning.memory_tracker import MemoryTracker


class _Gradients(Function):
    """A scalar of tensors, whose backward allocates their gradients."""

    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> Tensor:
        """Any scalar."""
        ctx.forms = [(tensor.shape, tensor.dtype) for tensor in tensors]
        return tensors[0].new_empty(())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        """Gradients of the tensors."""
        return tuple(gradients[0].new_empty(shape, dtype=dtype) for shape, dtype in ctx.forms)


def measure_backward(
    memory: MemoryTracker, roots: list[Tensor], tensors: list[Tensor]
) -> tuple[list[int], list[tuple[torch.Size, torch.dtype] | None]]:
    """Peaks in bytes of a backward that retains the graph and of one that does not.

    Args:
        memory: The tracker that is active.
        roots: Outputs of the block that have a gradient; the list is cleared.
        tensors: Its inputs and trained weights.

    Returns:
        The two peaks, and shape and dtype of each tensor's gradient; None for those without one.
    """
    if not roots:
        return [0, 0], [None] * len(tensors)
    sizes = sum(root.numel() * root.element_size() for root in roots)
    total = cast(Any, _Gradients).apply(*roots)
    roots.clear()  # the outputs
    leaves = list({id(t): t for t in tensors if t.requires_grad}.values())
    peaks = []
    for retain in (True, False):
        memory.restart()
        start = memory.live + sizes
        gradients = torch.autograd.grad(total, leaves, allow_unused=True, retain_graph=retain)
        peaks.append(memory.peak - start)
        forms = {
            id(leaf): (gradient.shape, gradient.dtype)
            for leaf, gradient in zip(leaves, gradients, strict=True)
            if gradient is not None
        }
        del gradients
    # A tensor that is two inputs has one gradient.
    return peaks, [forms.pop(id(tensor), None) for tensor in tensors]
