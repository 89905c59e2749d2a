"""Latents of generated images, with new noise for every training batch."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from erasure_lightning.backbones.base import Backbone
from erasure_lightning.backbones.interface import Size
from erasure_lightning.backbones.process import NoiseProcess
from erasure_lightning.concepts.concept import Phrase
from erasure_lightning.diffusion.sampling import sample_latents

#: Images generated per batch.
_BATCH_SIZE = 16


class NoisedLatents(NamedTuple):
    """A batch of noised latents with their training target.

    Args:
        x: Noisy latents, ``(B, C, h, w)``.
        t: Their times, ``(B,)``.
        target: The prediction of a perfect denoiser, ``(B, C, h, w)``.
    """

    x: Tensor
    t: Tensor
    target: Tensor


class LatentDataset:
    """Latents of images that a model generates for prompts; they are never decoded.

    Args:
        backbone: The model.
        prompts: One per image, ``N``.
        seed: Seed of the images, which depend on it, the prompts and the model alone: a resumed run
            generates the same.
        steps: Sampling steps, at least 1.
        guidance: Scale of classifier-free guidance.
        size: Height and width in pixels; the model's own by default.
        first: Number of images that another dataset already has from the same seed.
    """

    def __init__(
        self,
        backbone: Backbone,
        prompts: Sequence[str | Phrase],
        seed: int,
        *,
        steps: int,
        guidance: float,
        size: Size | None = None,
        first: int = 0,
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        seeds = torch.randint(2**31, (first + len(prompts),), generator=generator)[first:].tolist()
        batches = [slice(i, i + _BATCH_SIZE) for i in range(0, len(prompts), _BATCH_SIZE)]
        latents = [
            sample_latents(
                backbone, prompts[i], seeds[i], steps=steps, guidance=guidance, size=size
            )
            for i in batches
        ]
        self.latents = torch.cat(latents)
        self.process = backbone.process

    def noised(self, rows: Sequence[int]) -> NoisedLatents:
        """Images by number, with new noise at times drawn uniformly."""
        clean = self.latents[list(rows)]
        times = self.process.draw_times(len(clean)).to(clean.device)
        return add_noise(self.process, clean, times)


def add_noise(process: NoiseProcess, clean: Tensor, t: Tensor) -> NoisedLatents:
    """Clean latents ``(B, C, h, w)`` with new noise at times ``(B,)``."""
    noise = torch.randn(clean.shape).to(clean)
    return NoisedLatents(process.noise(clean, noise, t), t, process.target(clean, noise, t))
