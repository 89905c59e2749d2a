"""Masks of the pixels that show a concept, from attention to text; depends on torch alone."""

from collections.abc import Mapping
from math import isqrt

import torch
from torch import Tensor
from torch.nn.functional import interpolate


def concept_relevance(
    maps: Mapping[str, Tensor], positions: Tensor, pixels: int | None = None
) -> Tensor:
    """Attention of each pixel to marked positions, averaged over heads, positions and layers.

    Args:
        maps: Attention probabilities by layer, ``(B, heads, pixels, L)`` each, of square images, as
            `Backbone.attention` collects them.
        positions: The concept's tokens, boolean ``(B, L)``.
        pixels: Use layers of this many pixels only; by default all, resized to the finest one.

    Returns:
        Relevance ``(B, side, side)`` in 0..1, without gradient.
    """
    side = isqrt(pixels or max(probabilities.shape[2] for probabilities in maps.values()))
    resized = []
    for probabilities in maps.values():
        if pixels not in (None, probabilities.shape[2]):
            continue
        relevance = _square(word_map(probabilities.detach(), positions))
        resized.append(interpolate(relevance, (side, side), mode="bilinear")[:, 0])
    return torch.stack(resized).mean(dim=0)


def word_map(maps: Tensor, positions: Tensor) -> Tensor:
    """The pixels' attention to marked tokens, mean over heads and tokens, ``(B, pixels)``, float32.

    Args:
        maps: Attention probabilities, ``(B, heads, pixels, L)``.
        positions: Marked tokens, boolean ``(B, L)``.
    """
    share = positions.float() / positions.sum(dim=1, keepdim=True).clamp(min=1)
    return torch.einsum("bpl,bl->bp", maps.float().mean(dim=1), share.to(maps.device))


def concept_mask(
    maps: Mapping[str, Tensor], positions: Tensor, threshold: float, pixels: int | None = None
) -> dict[str, Tensor]:
    """Masks of the pixels that show a concept, at each layer's own resolution.

    `concept_relevance` is rescaled to 0..1 image by image, thresholded, and resized to the nearest
    pixel, as Receler does with the layers of a quarter of the latents' side (verified in code,
    jasper0314-huang/Receler@3ccedc9). A map without contrast marks every pixel, as MACE's segmenter
    does where it finds no object.

    Args:
        maps: Attention probabilities by layer, ``(B, heads, pixels, L)`` each, of square images.
        positions: The concept's tokens, boolean ``(B, L)``.
        threshold: Share of the range between least and greatest relevance from which a pixel
            counts, 0..1; 0 marks all.
        pixels: Use layers of this many pixels only; by default all.

    Returns:
        A boolean mask ``(B, pixels)`` for every layer of ``maps``, also for layers not used.
    """
    relevance = concept_relevance(maps, positions, pixels)
    low = relevance.amin(dim=(1, 2), keepdim=True)
    high = relevance.amax(dim=(1, 2), keepdim=True)
    mask = (relevance - low >= threshold * (high - low)).float().unsqueeze(1)
    sides = {name: isqrt(probabilities.shape[2]) for name, probabilities in maps.items()}
    return {name: interpolate(mask, (side, side)).flatten(1).bool() for name, side in sides.items()}


def attention_inside(
    maps: Mapping[str, Tensor], positions: Tensor, masks: Mapping[str, Tensor]
) -> Tensor:
    """``sum_layers ||A_l[heads, pixels in the mask, positions]||_F`` of each image, ``(B,)``.

    MACE's loss (verified in code, Shilin-LU/MACE@057e7a6).

    Args:
        maps: Attention probabilities by layer, ``(B, heads, pixels, L)`` each, with gradient.
        positions: Tokens that are attended to, boolean ``(B, L)``.
        masks: Pixels that attend, by layer, boolean ``(B, pixels)`` each.
    """
    norms = []
    for name, probabilities in maps.items():
        inside = probabilities * masks[name][:, None, :, None] * positions[:, None, None]
        norms.append(inside.flatten(1).norm(dim=1))
    return torch.stack(norms).sum(dim=0)


def _square(rows: Tensor) -> Tensor:
    """Pixels in a row ``(B, pixels)`` as an image ``(B, 1, side, side)``."""
    return rows.reshape(len(rows), 1, isqrt(rows.shape[1]), -1)
