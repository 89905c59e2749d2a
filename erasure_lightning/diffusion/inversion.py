"""DDIM inversion and concept purification.

Concept purification (All but One: that it exists is stated, the procedure is reconstructed): an
image is inverted with the original model, and generated again from that noise with the edited one.
Where the two models agree the image is reconstructed; where the edit changed the meaning of the
prompt, the image changes with it.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from erasure_lightning.backbones.base import Backbone
from erasure_lightning.backbones.conditioning import Conditioning
from erasure_lightning.backbones.interface import Size
from erasure_lightning.backbones.process import NoiseProcess
from erasure_lightning.diffusion.ddim import ddim, ddim_times
from erasure_lightning.diffusion.finite_images import require_finite_images

#: The procedure of `purify_images` in messages.
_SAMPLING = "DDIM inversion"


@torch.no_grad()
def invert(
    backbone: Backbone,
    conditioning: Conditioning,
    x0: Tensor,
    steps: int,
    refinements: int = 3,
    size: Size | None = None,
) -> Tensor:
    """The noise ``(B, C, h, w)`` from which `retrace` returns to ``x0``, without guidance.

    A step from ``x_t`` to the noisier ``x_t'`` needs the prediction at ``x_t'``, which is unknown.
    Plain DDIM inversion (Song et al., arXiv 2010.02502) evaluates it at ``x_t``; here the result is
    evaluated again, ``refinements`` times: the fixed-point iteration of AIDI (Pan et al., arXiv
    2309.04907), without its acceleration. It converges where the prediction changes little over a
    step, so that more steps need fewer refinements. Costs ``steps (1 + refinements)`` evaluations
    of the denoiser.

    Args:
        backbone: The model.
        conditioning: Encoded prompts, ``(B, L, D)``.
        x0: Clean latents, ``(B, C, h, w)``.
        steps: Steps of the inversion, at least 1.
        refinements: Further evaluations a step; 0 is plain DDIM inversion.
        size: Height and width of the images in pixels; the model's own by default.

    Raises:
        ErasureError: If the noisiest prediction does not determine an image.
    """
    x = x0
    for t, noisier in pairwise(ddim_times(backbone, steps, size).flip(0)):
        after = x
        for _ in range(1 + refinements):
            prediction = backbone.denoise(x, noisier, conditioning)
            x = _before_step(backbone.process, prediction, after, t, noisier)
    return x


def _before_step(
    process: NoiseProcess, prediction: Tensor, after: Tensor, t: Tensor, noisier: Tensor
) -> Tensor:
    """The latents from which a DDIM step with a prediction leads to ``after``, ``(B, C, h, w)``.

    The step is affine in both and is solved for the latents: the noise that a velocity implies
    depends on them, and an iteration over it converges slowly, or not at all from pure noise.

    Args:
        process: The model's noise process.
        prediction: The native prediction at ``noisier``, ``(B, C, h, w)``.
        after: Latents after the step, ``(B, C, h, w)``.
        t: Their time, ``()``.
        noisier: The time before the step, ``()``.
    """

    def step(prediction: Tensor, x: Tensor) -> Tensor:
        clean = process.clean(prediction, x, noisier)
        return process.noise(clean, process.epsilon(prediction, x, noisier), t)

    zero = torch.zeros_like(after)
    return (after - step(prediction, zero)) / step(zero, torch.ones_like(zero))


def retrace(
    backbone: Backbone,
    conditioning: Conditioning,
    x: Tensor,
    steps: int,
    guidance: float = 1.0,
    size: Size | None = None,
) -> Tensor:
    """Clean latents ``(B, C, h, w)`` from noise by deterministic DDIM.

    Its times are those of the pipeline's sampler, each once, and 0, whatever that sampler is. If it
    is DDIM as configured by Stable Diffusion, this equals `sample_latents`; other samplers have
    other steps, which cannot be inverted like this.

    Args:
        backbone: The model.
        conditioning: Encoded prompts, ``(B, L, D)``.
        x: Noise, ``(B, C, h, w)``.
        steps: The steps of `invert`.
        guidance: Scale of classifier-free guidance; at 1 or below there is no unconditional
            prediction.
        size: Height and width of the images in pixels; the model's own by default.

    Raises:
        ErasureError: If the noisiest prediction does not determine an image.
    """
    return ddim(backbone, conditioning, x, ddim_times(backbone, steps, size), guidance)


class PurifiedImages(NamedTuple):
    """Images generated from inverted noise, ``(B, 3, H, W)`` in 0..1.

    Args:
        reconstructed: By the original model; their difference from the input is due to inversion,
            autoencoder and guidance alone.
        purified: By the edited model.
    """

    reconstructed: Tensor
    purified: Tensor


@torch.no_grad()
def purify_images(
    original: Backbone,
    edited: Backbone,
    images: Tensor,
    prompts: Sequence[str],
    *,
    steps: int,
    guidance: float = 1.0,
) -> PurifiedImages:
    """Generates real images again with an edited model.

    Args:
        original: The model that inverts the images, always without guidance: guided inversion
            returns to them too, but from noise so large that an edited model loses the image
            (measured on the emoji world).
        edited: The model that generates them again.
        images: ``(B, 3, H, W)`` in 0..1, of a size that the models support.
        prompts: Description of each image, ``B``; an edit acts on the concepts in it.
        steps: Steps in both directions.
        guidance: Guidance scale of the generation, for both models.

    Raises:
        ErasureError: If an image of either model holds NaN or infinity, or the noisiest prediction
            does not determine an image.
    """
    conditioning = original.encode(prompts)
    noise = invert(original, conditioning, original.compress(images), steps)
    reconstructed = original.decode(retrace(original, conditioning, noise, steps, guidance))
    require_finite_images(reconstructed, "original", original, prompts, _SAMPLING)
    purified = edited.decode(retrace(edited, edited.encode(prompts), noise, steps, guidance))
    require_finite_images(purified, "edited", edited, prompts, _SAMPLING)
    return PurifiedImages(reconstructed, purified)
