"""Saliency masks: only weights with a large gradient on some loss are trained (SalUn, ANT)."""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from erasure_lightning.checks import require
from erasure_lightning.errors import ErasureError
from erasure_lightning.seeding import derive_seed
from erasure_lightning.training.gradient import GradientErasure
from erasure_lightning.training.optimizers import DECAY

_T = TypeVar("_T")

#: Which entries of each parameter are trained: boolean and of its shape, by name.
ParameterMasks = dict[str, Tensor]


def summed_gradients(
    losses: Iterable[Tensor], parameters: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Sum of the signed gradients of every loss, in float32; 0 where a loss does not reach."""
    sums = {name: torch.zeros_like(p, dtype=torch.float32) for name, p in parameters.items()}
    for loss in losses:
        gradients = torch.autograd.grad(loss, list(parameters.values()), materialize_grads=True)
        for total, gradient in zip(sums.values(), gradients, strict=True):
            total += gradient
    return sums


def salient_masks(
    gradients: Mapping[str, Tensor], share: float, *, each: bool = False
) -> ParameterMasks:
    """Masks of the entries with the largest absolute gradients.

    Args:
        gradients: By name, of any shapes.
        share: Share of the entries that are marked, rounded down to a whole number; ties at the
            threshold are all marked, entries without a gradient never.
        each: Use a threshold for every tensor, not one for all.
    """
    sizes = {name: gradient.abs() for name, gradient in gradients.items()}
    if each:
        thresholds = {name: _threshold(size.flatten(), share) for name, size in sizes.items()}
    else:
        together = torch.cat([size.flatten() for size in sizes.values()])
        thresholds = dict.fromkeys(sizes, _threshold(together, share))
    return {name: (size >= thresholds[name]) & (size > 0) for name, size in sizes.items()}


def _threshold(sizes: Tensor, share: float) -> Tensor:
    """The smallest of the largest sizes; infinite where none are to be marked, ``()``."""
    count = int(share * len(sizes))
    return sizes.kthvalue(len(sizes) - count + 1).values if count else sizes.new_tensor(torch.inf)


class SalientErasure(GradientErasure):
    """Base of methods that train only the most salient weights; others stay bit-identical.

    The masks are computed at the original's weights, before the first step, and saved with a
    checkpoint. Gradients of retention callbacks are masked like all others.

    Args:
        share: Share of the weights that are trained, above 0; at 1 all of them, without masks. Of
            low-rank adapters masks leave the factor that has a gradient at the original.
        kwargs: Arguments of `GradientErasure`.

    Raises:
        ErasureError: If the share is out of range, weights decay, or no weight is salient.
    """

    def __init__(self, *, share: float = 0.5, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        require(type(self).__name__, above=0, at_most=1, share=share)
        decay = DECAY[self.optimizer] if self.weight_decay is None else self.weight_decay
        if decay and share < 1:
            raise ErasureError(
                f"{type(self).__name__} needs a weight_decay of 0, for decay moves what the masks"
                f" hold; found {decay}. Set weight_decay 0, or share 1 for no masks."
            )
        self.share = share
        self.masks: ParameterMasks = {}

    def replicates_trainable(self) -> bool:
        """Always: the masks are computed from gradients of whole weights."""
        return True

    @abstractmethod
    def saliency(self) -> ParameterMasks:
        """The masks of `trainable`; called once, while the model is still its original."""

    def gradients(self, loss: Callable[[_T], Tensor], batches: Sequence[_T]) -> dict[str, Tensor]:
        """`summed_gradients` of `trainable`, over all ranks, so that their masks agree.

        Args:
            loss: Returns a scalar.
            batches: Its arguments, each of which is differentiated by itself.
        """
        return {
            name: self.trainer.strategy.reduce(gradient, reduce_op="sum")
            for name, gradient in summed_gradients(map(loss, batches), self.trainable()).items()
        }

    def prepare(self) -> None:
        """Computes the masks, unless a checkpoint has restored them.

        Raises:
            ErasureError: If no weight is salient.
        """
        super().prepare()
        if self.share < 1 and not self.masks:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(derive_seed(self.seed, self.global_rank, 8))
                self.masks = self.saliency()
            if not any(mask.any() for mask in self.masks.values()):
                raise ErasureError(
                    f"{type(self).__name__} needs a weight that may move; found none. Raise share."
                )
        self.masks = {name: mask.to(self.device) for name, mask in self.masks.items()}

    def on_after_backward(self) -> None:
        """Sets masked gradients to 0, which leave a weight unchanged in Adam without decay."""
        super().on_after_backward()
        if not self.masks:
            return
        for name, parameter in self.trainable().items():
            if parameter.grad is not None:
                parameter.grad.mul_(self.masks[name])

    def description(self) -> dict[str, Any]:
        """Metadata of an edit, with the share of the weights that the masks leave free."""
        share = 1.0
        if self.masks:
            free = sum(int(mask.sum()) for mask in self.masks.values())
            share = free / sum(mask.numel() for mask in self.masks.values())
        return super().description() | {"salient": share}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Saves the masks too, which cannot be recomputed once weights have changed."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["masks"] = self.masks

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restores the masks."""
        super().on_load_checkpoint(checkpoint)
        self.masks = checkpoint.get("masks", {})
