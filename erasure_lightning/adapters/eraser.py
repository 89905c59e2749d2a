"""Erasers behind cross-attention (Huang et al., Receler, arXiv 2311.17717; jasper0314-huang/Receler
@ 3ccedc9).
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from erasure_lightning.adapters.base import CHILD, Adapter


class Eraser(Adapter):
    """Adds ``E(h) = U gelu(D h)`` to what a cross-attention module says, ``h``, before that joins
    the residual.

    Verified in code: rank 128, biases in both maps, the second begins at zero.

    Args:
        layer: A diffusers cross-attention module.
        rank: Width between the two maps, at least 1.
    """

    def __init__(self, layer: nn.Module, *, rank: int) -> None:
        super().__init__(layer)
        width = cast(Any, layer).out_dim
        self.maps = nn.Sequential(nn.Linear(width, rank), nn.GELU(), nn.Linear(rank, width))
        for parameter in self.maps[2].parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor, output: Tensor) -> Tensor:
        """``h + E(h)``, ``(B, pixels, D)``."""
        return output + cast(Tensor, self.maps(output))

    def is_identity(self) -> bool:
        """Whether the second map is zero."""
        return not any(parameter.any() for parameter in self.maps[2].parameters())


@contextmanager
def listening(denoiser: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Collect what each eraser adds, ``(B, pixels, D)`` by its layer's name, in the last forward
    inside.
    """
    added: dict[str, Tensor] = {}
    erasers = {
        n.removesuffix(f".{CHILD}"): m for n, m in denoiser.named_modules() if isinstance(m, Eraser)
    }
    handles = [
        eraser.maps.register_forward_hook(lambda *seen, name=name: added.update({name: seen[2]}))
        for name, eraser in erasers.items()
    ]
    try:
        yield added
    finally:
        for handle in handles:
            handle.remove()


def outside(added: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> Tensor:
    """Mean square of what erasers add ``(B, pixels, D)`` where the masks ``(B, pixels)`` are not,
    over all layers.

    Receler's ``L_reg``: ``sum_pixels (1 - M) mean_channels E(h)^2 / sum_pixels (1 - M)``, verified
    in code.
    """
    layers = []
    for name, change in added.items():
        off = ~masks[name]
        layers.append(
            (
                (change.float().square().mean(dim=2) * off).sum(dim=1) / off.sum(dim=1).clamp(min=1)
            ).mean()
        )
    return torch.stack(layers).mean()
