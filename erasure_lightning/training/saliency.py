"""Saliency masks: training moves only the weights whose slope on some loss is steep (SalUn, ANT)."""

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from erasure_lightning.errors import ErasureError
from erasure_lightning.seeding import derive_seed
from erasure_lightning.training.gradient import GradientErasure
from erasure_lightning.training.optimizers import DECAY

#: Which entries of each parameter move, boolean and of its shape, by name.
Masks = dict[str, Tensor]


def summed_slopes(losses: Iterable[Tensor], parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The slopes of every loss, with their signs, added up in float32; 0 where a loss does not
    reach.
    """
    total = {name: torch.zeros_like(p, dtype=torch.float32) for name, p in parameters.items()}
    for loss in losses:
        slopes = torch.autograd.grad(loss, list(parameters.values()), materialize_grads=True)
        for so_far, slope in zip(total.values(), slopes, strict=True):
            so_far += slope
    return total


def salient(slopes: Mapping[str, Tensor], share: float, *, each: bool = False) -> Masks:
    """Where slopes are largest in size.

    Args:
        slopes: By name; any shapes.
        share: Of the entries that are marked, rounded down to a whole number; ties at the cut are
            all marked, entries without a slope never.
        each: Cut every tensor by itself, instead of all at one size.
    """
    sizes = {name: slope.abs() for name, slope in slopes.items()}
    if each:
        cuts = {name: _cut(size.flatten(), share) for name, size in sizes.items()}
    else:
        cuts = dict.fromkeys(
            sizes, _cut(torch.cat([size.flatten() for size in sizes.values()]), share)
        )
    return {name: (size >= cuts[name]) & (size > 0) for name, size in sizes.items()}


def _cut(sizes: Tensor, share: float) -> Tensor:
    """The smallest of the largest sizes; infinite where none are wanted, ``()``."""
    kept = int(share * len(sizes))
    return sizes.kthvalue(len(sizes) - kept + 1).values if kept else sizes.new_tensor(torch.inf)


class SalientErasure(GradientErasure):
    """A method that moves only the weights which matter most to what it forgets; all others stay
    bit-identical.

    The masks are found at the original's weights, before the first step, and saved with a
    checkpoint. What retention callbacks ask is masked like everything else.

    Args:
        share: Of the weights that may move, above 0; at 1 all of them, and no saliency is asked.
        kwargs: Arguments of every gradient method.

    Raises:
        ErasureError: If the share is out of range, weights decay, or no weight is salient.
    """

    def __init__(self, *, share: float = 0.5, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not 0 < share <= 1:
            raise ErasureError(
                f"{type(self).__name__} needs share above 0 and at most 1; found {share}."
            )
        decay = DECAY[self.optimizer] if self.weight_decay is None else self.weight_decay
        if decay and share < 1:
            raise ErasureError(
                f"{type(self).__name__} needs a weight_decay of 0, for decay moves what the masks"
                f" hold; found {decay}. Set --model.weight_decay 0, or --model.share 1 for no"
                " masks."
            )
        self.share = share
        self.masks: Masks = {}

    def replicates_trainable(self) -> bool:
        """It is: the masks are found by slopes of whole weights."""
        return True

    @abstractmethod
    def saliency(self) -> Masks:
        """The masks, one for each of `trainable`; asked once, while the model is its original."""

    def slopes(self, losses: Iterable[Tensor]) -> dict[str, Tensor]:
        """`summed_slopes` of `trainable`, over all ranks, so that these mask alike."""
        found = summed_slopes(losses, self.trainable())
        return {
            name: self.trainer.strategy.reduce(slope, reduce_op="sum")
            for name, slope in found.items()
        }

    def on_train_start(self) -> None:
        """Find the masks, unless a checkpoint held them."""
        super().on_train_start()
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
        """Flatten the slopes of what may not move: Adam without decay leaves it where it is."""
        super().on_after_backward()
        for name, parameter in self.trainable().items() if self.masks else ():
            if parameter.grad is not None:
                parameter.grad.mul_(self.masks[name])

    def description(self) -> dict[str, Any]:
        """What an edit was made from, and which share of the weights the masks let move."""
        moving = sum(int(mask.sum()) for mask in self.masks.values())
        share = moving / sum(mask.numel() for mask in self.masks.values()) if self.masks else 1.0
        return super().description() | {"salient": share}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the masks, which cannot be found again once weights have moved."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["masks"] = self.masks

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up the masks."""
        super().on_load_checkpoint(checkpoint)
        self.masks = checkpoint.get("masks", {})
