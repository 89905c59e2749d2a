"""Ancestral sampling of any noise process, with the log-density of every step.

With ``x_t = a_t x0 + s_t noise``, noising from a cleaner time ``u`` to ``t`` multiplies by ``r =
a_t / a_u`` and adds variance ``v = s_t^2 - r^2 s_u^2``. The step back, for the clean latents ``x0``
and the noise ``n`` that a prediction implies, is (DDIM, arXiv 2010.02502, equations 12 and 16,
where ``a^2 = alpha``)

    ``x_u ~ N( a_u x0 + sqrt(s_u^2 - sigma^2) n, sigma^2 )``,  ``sigma = eta sqrt(v) s_u / s_t``

at eta 1 the posterior of the noising, hence DDPM's. Nothing in it needs ``a^2 + s^2 = 1``: for a
rectified flow it is a stochastic sampler of the same marginals (derived here).
"""

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from erasure_lightning.backbones.base import Backbone
from erasure_lightning.backbones.conditioning import Conditioning
from erasure_lightning.backbones.process import NoiseProcess, signal_and_noise
from erasure_lightning.diffusion.sampling import guided_predictor


class DiagonalGaussian(NamedTuple):
    """A normal distribution of latents with one deviation an image.

    Args:
        mean: ``(B, C, h, w)``.
        deviation: Above 0, ``(B, 1, 1, 1)``.
    """

    mean: Tensor
    deviation: Tensor

    def log_density(self, x: Tensor) -> Tensor:
        """Mean over elements of the log-density of latents ``(B, C, h, w)``, ``(B,)``."""
        standard = (x - self.mean) / self.deviation
        constant = self.deviation.log() + math.log(2 * math.pi) / 2
        return -(standard.square() / 2 + constant).flatten(1).mean(dim=1)


class StochasticStep(NamedTuple):
    """A step of ancestral sampling.

    Args:
        x: Latents before it, ``(B, C, h, w)``.
        t: Their time, ``()``.
        after: Latents after it, ``(B, C, h, w)``.
        after_t: Their time, ``()``.
        conditional: The prediction for the prompts at ``x``, ``(B, C, h, w)``.
        unconditional: The unconditional prediction; the same tensor as ``conditional`` where
            guidance needs none.
        log_density: Log-density of ``after``, mean over elements, ``(B,)``.
    """

    x: Tensor
    t: Tensor
    after: Tensor
    after_t: Tensor
    conditional: Tensor
    unconditional: Tensor
    log_density: Tensor


def noising(process: NoiseProcess, after: Tensor, after_t: Tensor, t: Tensor) -> DiagonalGaussian:
    """``x_t`` given cleaner latents ``after`` at ``after_t``, the noising of the process.

    Args:
        process: The model's noise process.
        after: Latents, ``(B, C, h, w)``.
        after_t: Their times, ``(B,)``.
        t: Noisier times, ``(B,)``.
    """
    ratio, deviation = _between(process, after_t, t)
    return DiagonalGaussian(ratio * after, deviation)


def ancestral_step(
    process: NoiseProcess, prediction: Tensor, x: Tensor, t: Tensor, after_t: Tensor, eta: float
) -> DiagonalGaussian:
    """The cleaner latents at ``after_t``, given a prediction at ``(x, t)``.

    Args:
        process: The model's noise process.
        prediction: The (guided) native prediction, ``(B, C, h, w)``.
        x: Latents, ``(B, C, h, w)``.
        t: Their times, ``(B,)``.
        after_t: Cleaner times with noise left, ``(B,)``.
        eta: Share of the posterior's deviation, above 0 and at most 1.
    """
    _, scale = signal_and_noise(process, t)
    after_a, after_s = signal_and_noise(process, after_t)
    deviation = eta * _between(process, after_t, t)[1] * after_s / scale
    clean = process.clean(prediction, x, t)
    noise = process.epsilon(prediction, x, t)
    # At eta 1 from pure noise the difference is 0, or less by rounding.
    direction = (after_s.square() - deviation.square()).clamp(min=0).sqrt()
    return DiagonalGaussian(after_a * clean + direction * noise, deviation)


def _between(process: NoiseProcess, after_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """``a_t / a_u`` and ``sqrt(v)`` of the noising from ``after_t`` to ``t``."""
    a, s = signal_and_noise(process, t)
    after_a, after_s = signal_and_noise(process, after_t)
    ratio = a / after_a
    return ratio, (s.square() - (ratio * after_s).square()).sqrt()


def stochastic_times(backbone: Backbone, steps: int) -> Tensor:
    """Times of ancestral sampling from noise on, falling, ``(S + 1,)``.

    They are those of the pipeline's sampler and the clean end, as far as there is noise: a step
    that leaves none has no density.
    """
    sampled = backbone.sampler(steps).times
    falling = sorted({*sampled.float().tolist(), 0.0}, reverse=True)
    times = torch.tensor(falling, device=sampled.device)
    _, s = signal_and_noise(backbone.process, times)
    return times[s.flatten() > 0]


@torch.no_grad()
def ancestral_rollout(
    backbone: Backbone,
    conditioning: Conditioning,
    seeds: Sequence[int],
    *,
    steps: int,
    guidance: float,
    eta: float,
) -> Iterator[StochasticStep]:
    """The steps of ancestral sampling from noise, with guidance.

    Args:
        backbone: The model.
        conditioning: Encoded prompts, ``(B, L, D)``.
        seeds: ``B`` seeds of the initial noise and of all noise that follows.
        steps: Sampling steps of the pipeline's sampler, whose times are used, at least 2.
        guidance: As in `sampling.rollout`.
        eta: Share of the posterior's deviation, above 0 and at most 1.
    """
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    shape = backbone.latent_shape()

    def noise() -> Tensor:
        drawn = torch.stack([torch.randn(shape, generator=each) for each in generators])
        return drawn.to(backbone.device, backbone.dtype)

    x = noise()
    predict = guided_predictor(backbone, conditioning, guidance)
    for t, after_t in pairwise(stochastic_times(backbone, steps)):
        guided, conditional, unconditional = predict(x, t)
        step = ancestral_step(
            backbone.process, guided, x, t.expand(len(x)), after_t.expand(len(x)), eta
        )
        after = step.mean + step.deviation * noise()
        yield StochasticStep(
            x, t, after, after_t, conditional, unconditional, step.log_density(after)
        )
        x = after
