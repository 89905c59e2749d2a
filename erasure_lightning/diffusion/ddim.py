"""Deterministic DDIM from noise to latents, with a hook that changes its steps."""

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from erasure_lightning.backbones.base import Backbone
from erasure_lightning.backbones.conditioning import Conditioning
from erasure_lightning.backbones.interface import Size
from erasure_lightning.backbones.process import NoiseProcess, signal_and_noise
from erasure_lightning.diffusion.sampling import guided_predictor
from erasure_lightning.errors import ErasureError

#: Scale of the clean latents below which noisy latents count as pure noise (zero terminal
#: signal-to-noise ratio, which schedulers also write as 2**-24). The noisiest time of a usual
#: schedule has .07.
_MIN_SIGNAL = 1e-3


class DDIMStep(NamedTuple):
    """A step ``x_t' = a_t' clean + s_t' noise`` before it is taken.

    Args:
        number: Number of the step, from 0.
        x: Noisy latents ``x_t``, ``(B, C, h, w)``.
        t: Their time, ``()``.
        cleaner: The time ``t'`` after the step, ``()``.
        clean: Clean latents of the guided prediction, ``(B, C, h, w)``.
        noise: Noise of the guided prediction, ``(B, C, h, w)``.
    """

    number: int
    x: Tensor
    t: Tensor
    cleaner: Tensor
    clean: Tensor
    noise: Tensor


#: The clean latents and the noise that a step takes in place of the prediction's.
StepChange = Callable[[DDIMStep], tuple[Tensor, Tensor]]


@torch.no_grad()
def ddim(
    backbone: Backbone,
    conditioning: Conditioning,
    x: Tensor,
    times: Tensor,
    guidance: float = 1.0,
    change: StepChange | None = None,
) -> Tensor:
    """Latents ``(B, C, h, w)`` after deterministic DDIM (Song et al., arXiv 2010.02502).

    Every family's noise process has these steps; on a rectified flow they are Euler's.

    Args:
        backbone: The model.
        conditioning: Encoded prompts, ``(B, L, D)``.
        x: Noisy latents at the first time, ``(B, C, h, w)``.
        times: Times from noise to clean, ``(S + 1,)``, such as consecutive ones of `ddim_times`.
        guidance: Scale of classifier-free guidance; at 1 or below there is no unconditional
            prediction.
        change: Changes every step.
    """
    predict = guided_predictor(backbone, conditioning, guidance)
    process = backbone.process
    for number, (t, cleaner) in enumerate(pairwise(times)):
        prediction = predict(x, t).guided
        noise = process.epsilon(prediction, x, t)
        # Not `remove`: at a time of pure noise the noise determines no clean latents.
        clean = process.clean(prediction, x, t)
        if change is not None:
            clean, noise = change(DDIMStep(number, x, t, cleaner, clean, noise))
        x = process.noise(clean, noise, cleaner)
    return x


def ddim_times(backbone: Backbone, steps: int, size: Size | None = None) -> Tensor:
    """Times of the pipeline's sampler, each once, falling to 0, ``(S + 1,)``.

    Args:
        backbone: The model.
        steps: Sampling steps, at least 1.
        size: Height and width in pixels; the model's own by default.

    Raises:
        ErasureError: If the noisiest prediction does not determine an image.
    """
    times = backbone.sampler(steps, size).times  # samplers of higher order repeat a time
    falling = torch.tensor(sorted({0.0, *times.tolist()}, reverse=True), device=times.device)
    _require_clean(backbone, falling[0])
    return falling


def is_pure_noise(process: NoiseProcess, t: Tensor) -> bool:
    """Whether latents at a time ``()`` hold no signal, so that they are their own noise."""
    signal, _ = signal_and_noise(process, t)
    return signal.item() < _MIN_SIGNAL


def _require_clean(backbone: Backbone, t: Tensor) -> None:
    """Raises unless a prediction at time ``t`` determines the clean latents."""
    one = torch.ones(1, 1, 1, 1, device=t.device)
    if backbone.process.clean(torch.zeros_like(one), one, t).abs().item() > 1 / _MIN_SIGNAL:
        raise ErasureError(
            f"{backbone.name} predicts the noise (epsilon) also where latents are noise alone (zero"
            " terminal signal-to-noise ratio), which does not determine an image. Its scheduler"
            " needs prediction_type v_prediction, or rescale_betas_zero_snr false, whichever its"
            " weights were trained with."
        )
