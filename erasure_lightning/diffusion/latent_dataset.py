"""Pictures that a model draws once, as latents, to be noised whenever training looks at them."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from erasure_lightning.backbones.base import Backbone
from erasure_lightning.backbones.interface import Size
from erasure_lightning.backbones.process import NoiseProcess
from erasure_lightning.concepts.concept import Phrase
from erasure_lightning.diffusion.sampling import sample_latents

#: Pictures drawn side by side.
_BATCH_SIZE = 16


class NoisedLatents(NamedTuple):
    """Some pictures, noised.

    Args:
        x: Noisy latents, ``(B, C, h, w)``.
        t: Their times, ``(B,)``.
        target: The prediction of a perfect denoiser, ``(B, C, h, w)``.
    """

    x: Tensor
    t: Tensor
    target: Tensor


class LatentDataset:
    """The pictures of some prompts as latents; they are never decoded, since training would only
    encode them again.

    Args:
        backbone: Who draws them.
        prompts: One a picture, ``N`` of them.
        seed: They depend on it, the prompts and the model alone, so that a resumed run draws the
            same.
        steps: Sampling steps, at least 1.
        guidance: Scale of classifier-free guidance.
        size: Height and width in pixels; the model's own by default.
        first: Number of the first picture, where pictures of the same seed were drawn before these.
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
        chunks = [slice(i, i + _BATCH_SIZE) for i in range(0, len(prompts), _BATCH_SIZE)]
        drawn = [
            sample_latents(
                backbone, prompts[c], seeds[c], steps=steps, guidance=guidance, size=size
            )
            for c in chunks
        ]
        self.latents = torch.cat(drawn)
        self.process = backbone.process

    def noised(self, rows: Sequence[int]) -> NoisedLatents:
        """Pictures by number, with fresh noise at times drawn from all there are."""
        clean = self.latents[list(rows)]
        return add_noise(self.process, clean, self.process.draw_times(len(clean)).to(clean.device))


def add_noise(process: NoiseProcess, clean: Tensor, t: Tensor) -> NoisedLatents:
    """Clean latents ``(B, C, h, w)`` with fresh noise at times ``(B,)``."""
    noise = torch.randn(clean.shape).to(clean)
    return NoisedLatents(process.noise(clean, noise, t), t, process.target(clean, noise, t))
