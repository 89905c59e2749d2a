"""DDIM inversion: from a picture back to the noise a model draws it from, and from there forth with
another model.

Concept purification (All but One: that it exists is stated, the procedure is reconstructed): a
picture is inverted with the original model and drawn again with the edited one. Where the two agree
the picture comes back; where the edit changed what the prompt means, it goes the edit's way.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from erasure_lightning.backbones.base import Backbone
from erasure_lightning.backbones.conditioning import Conditioning
from erasure_lightning.diffusion.finite_images import require_finite_images
from erasure_lightning.errors import ErasureError

#: Scale of the clean latents below which a noisy latent is taken to hold none of them (zero
#: terminal signal-to-noise ratio, which samplers also write as 2**-24). The noisiest time of a
#: usual schedule has .07.
_MIN_SIGNAL = 1e-3

#: How `purify_images` draws.
_SAMPLING = "DDIM inversion"


@torch.no_grad()
def invert(
    backbone: Backbone, conditioning: Conditioning, x0: Tensor, steps: int, refinements: int = 3
) -> Tensor:
    """The noise ``(B, C, h, w)`` from which `retrace` comes back to ``x0``, without guidance.

    A step from ``x_t`` to the noisier ``x_t'`` needs the prediction at the very ``x_t'`` that it
    looks for. Plain DDIM inversion (Song et al., arXiv 2010.02502) asks at ``x_t`` instead; here
    what that gives is asked at again, ``refinements`` times: the fixed-point iteration of AIDI (Pan
    et al., arXiv 2309.04907), without its acceleration. It converges where the prediction changes
    little over a step, so that more steps need fewer refinements. Costs ``steps (1 + refinements)``
    evaluations of the denoiser.

    Args:
        backbone: Whose predictions are followed.
        conditioning: Of the prompts, ``(B, L, D)``.
        x0: Clean latents, ``(B, C, h, w)``.
        steps: Steps of the way back, at least 1.
        refinements: Further evaluations a step; 0 is plain DDIM inversion.

    Raises:
        ErasureError: If the noisiest prediction does not determine a picture.
    """
    process, x = backbone.process, x0
    for t, noisier in pairwise(_times(backbone, steps)):
        start, faint = (
            x,
            bool(
                process.noise(torch.ones_like(x), torch.zeros_like(x), noisier).max() < _MIN_SIGNAL
            ),
        )
        for _ in range(1 + refinements):
            prediction = backbone.denoise(x, noisier, conditioning)
            if faint:  # then x is its own noise, whatever is predicted, and only a clean prediction tells anything
                noise = process.noise_in(start, process.clean(prediction, x, noisier), t)
            else:
                noise = process.epsilon(prediction, x, noisier)
            x = process.noise(process.remove(start, noise, t), noise, noisier)
    return x


@torch.no_grad()
def retrace(
    backbone: Backbone, conditioning: Conditioning, x: Tensor, steps: int, guidance: float = 1.0
) -> Tensor:
    """Clean latents ``(B, C, h, w)`` from noise by deterministic DDIM, whatever sampler the
    pipeline came with.

    It halts at the times of the pipeline's sampler, each once, and at 0. Where that sampler is DDIM
    as Stable Diffusion configures it, this is the way `sampling.sample` goes; other samplers step
    otherwise, and cannot be inverted so.

    Args:
        backbone: Whose predictions are followed.
        conditioning: Of the prompts, ``(B, L, D)``.
        x: Noise, ``(B, C, h, w)``.
        steps: As many as `invert` took.
        guidance: Scale of classifier-free guidance; at 1 or below the empty prompt is not
            evaluated.

    Raises:
        ErasureError: If the noisiest prediction does not determine a picture.
    """
    predict, process = _predictor(backbone, conditioning, guidance), backbone.process
    for t, cleaner in pairwise(_times(backbone, steps).flip(0)):
        prediction = predict(
            x, t
        )  # the clean latents out of it, since its noise may hold no trace of them
        x = process.noise(
            process.clean(prediction, x, t), process.epsilon(prediction, x, t), cleaner
        )
    return x


def _times(backbone: Backbone, steps: int) -> Tensor:
    """Times of the inversion, rising from 0, ``(S + 1,)``; samplers of higher order name a time
    twice.
    """
    times = backbone.sampler(steps).times
    rising = torch.tensor(sorted({0.0, *times.tolist()}), device=times.device)
    _require_clean(backbone, rising[-1])
    return rising


def _require_clean(backbone: Backbone, t: Tensor) -> None:
    """Raise unless a prediction at a time tells the clean latents."""
    one = torch.ones(1, 1, 1, 1, device=t.device)
    if backbone.process.clean(torch.zeros_like(one), one, t).abs().item() > 1 / _MIN_SIGNAL:
        raise ErasureError(
            f"{backbone.name} predicts the noise (epsilon) also where latents are noise alone (zero"
            " terminal signal-to-noise ratio), which does not determine a picture. Its scheduler"
            " needs prediction_type v_prediction, or rescale_betas_zero_snr false, whichever its"
            " weights were trained with."
        )


def _predictor(
    backbone: Backbone, conditioning: Conditioning, guidance: float
) -> Callable[[Tensor, Tensor], Tensor]:
    if guidance <= 1 or backbone.embeds_guidance:
        return lambda x, t: backbone.denoise(x, t, conditioning, guidance)
    both = Conditioning.cat([backbone.unconditional(len(conditioning)), conditioning])

    def guided(x: Tensor, t: Tensor) -> Tensor:
        unconditional, conditional = backbone.denoise(torch.cat((x, x)), t, both).chunk(2)
        return unconditional + guidance * (conditional - unconditional)

    return guided


class PurifiedImages(NamedTuple):
    """Pictures drawn from the noise that was found, ``(B, 3, H, W)`` in 0..1.

    Args:
        reconstructed: By the original: what inversion, autoencoder and guidance alone change of the
            given pictures.
        purified: By the edited model: what the edit changes besides.
    """

    reconstructed: Tensor
    purified: Tensor


@torch.no_grad()
def purify_images(
    original: Backbone,
    edited: Backbone,
    pictures: Tensor,
    prompts: Sequence[str],
    *,
    steps: int,
    guidance: float = 1.0,
) -> PurifiedImages:
    """Draw real pictures again with an edited model.

    Args:
        original: Finds the noise, always without guidance: guided inversion comes back too, but
            from noise so loud that an edited model loses the picture (measured on the emoji world).
        edited: Draws from it.
        pictures: ``(B, 3, H, W)`` in 0..1, of a size the models take.
        prompts: What each of them shows, ``B``; an edit acts on what the prompt names.
        steps: Steps in both directions.
        guidance: Of drawing, for the original and the edited model alike.

    Raises:
        ErasureError: If a picture of either model holds NaN or infinity, or the noisiest prediction
            does not determine a picture.
    """
    asked = original.encode(prompts)
    noise = invert(original, asked, original.compress(pictures), steps)
    reconstructed = original.decode(retrace(original, asked, noise, steps, guidance))
    require_finite_images(reconstructed, "original", original, prompts, _SAMPLING)
    purified = edited.decode(retrace(edited, edited.encode(prompts), noise, steps, guidance))
    require_finite_images(purified, "edited", edited, prompts, _SAMPLING)
    return PurifiedImages(reconstructed, purified)
