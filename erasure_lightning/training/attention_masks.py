"""Where a picture shows a concept, read off cross-attention; imports torch and nothing of ours."""

from collections.abc import Mapping
from math import isqrt

import torch
from torch import Tensor
from torch.nn.functional import interpolate


def concept_relevance(
    maps: Mapping[str, Tensor], positions: Tensor, pixels: int | None = None
) -> Tensor:
    """How much each pixel attends to marked positions: the mean over heads, those positions, and
    layers.

    Args:
        maps: Attention probabilities by layer, ``(B, heads, pixels, L)`` each, of square pictures:
            what `Backbone.attention` collects.
        positions: The concept's tokens, boolean ``(B, L)``.
        pixels: Only layers of so many pixels are read; by default all, brought to the finest one's
            resolution.

    Returns:
        Relevance ``(B, side, side)`` in 0..1, without gradient.
    """
    side = isqrt(pixels or max(probabilities.shape[2] for probabilities in maps.values()))
    share = positions.float() / positions.sum(dim=1, keepdim=True).clamp(min=1)
    read = [p.detach().float().mean(dim=1) for p in maps.values() if pixels in (None, p.shape[2])]
    seen = [_square(torch.einsum("bpl,bl->bp", p, share.to(p.device))) for p in read]
    return torch.stack([interpolate(m, (side, side), mode="bilinear")[:, 0] for m in seen]).mean(
        dim=0
    )


def concept_mask(
    maps: Mapping[str, Tensor], positions: Tensor, threshold: float, pixels: int | None = None
) -> dict[str, Tensor]:
    """Which pixels show a concept, at each layer's own resolution.

    `concept_relevance` is brought to 0..1 picture by picture, cut at the threshold and resized to
    the nearest pixel, as Receler does with the layers of a quarter of the latents' side (verified
    in code, jasper0314-huang/Receler@3ccedc9). A map without contrast finds nothing and marks every
    pixel, as MACE's segmenter does.

    Args:
        maps: Attention probabilities by layer, ``(B, heads, pixels, L)`` each, of square pictures.
        positions: The concept's tokens, boolean ``(B, L)``.
        threshold: Share of the range between least and greatest relevance from which a pixel
            counts, 0..1; 0 marks all.
        pixels: Only layers of so many pixels are read; by default all.

    Returns:
        A boolean mask ``(B, pixels)`` for every layer of ``maps``, also those that were not read.
    """
    relevance = concept_relevance(maps, positions, pixels)
    low, high = relevance.amin(dim=(1, 2), keepdim=True), relevance.amax(dim=(1, 2), keepdim=True)
    mask = (relevance - low >= threshold * (high - low)).float().unsqueeze(1)
    sides = {name: isqrt(probabilities.shape[2]) for name, probabilities in maps.items()}
    return {name: interpolate(mask, (side, side)).flatten(1).bool() for name, side in sides.items()}


def attention_inside(
    maps: Mapping[str, Tensor], positions: Tensor, masks: Mapping[str, Tensor]
) -> Tensor:
    """``sum_layers ||A_l[heads, pixels in the mask, positions]||_F`` of each picture, ``(B,)``.

    MACE's loss (verified in code, Shilin-LU/MACE@057e7a6).

    Args:
        maps: Attention probabilities by layer, ``(B, heads, pixels, L)`` each, with gradient.
        positions: Tokens that are looked at, boolean ``(B, L)``.
        masks: Pixels that look, by layer, boolean ``(B, pixels)`` each.
    """
    marked = [
        p * masks[name][:, None, :, None] * positions[:, None, None] for name, p in maps.items()
    ]
    return torch.stack([p.flatten(1).norm(dim=1) for p in marked]).sum(dim=0)


def _square(rows: Tensor) -> Tensor:
    """Pixels in a row ``(B, pixels)`` as a picture ``(B, 1, side, side)``."""
    return rows.reshape(len(rows), 1, isqrt(rows.shape[1]), -1)
