"""Sampling: the rollout from noise to latents, and its images."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from erasure_lightning.backbones.base import Backbone
from erasure_lightning.backbones.conditioning import Conditioning
from erasure_lightning.backbones.interface import Size
from erasure_lightning.concepts.concept import Phrase


class RolloutStep(NamedTuple):
    """One evaluation of the denoiser in a rollout.

    Args:
        x: Latents ``(B, C, h, w)`` as the denoiser reads them, of the noise process at ``t``.
        t: The time of the evaluation, real-valued, ``()``.
        conditional: The prediction for the prompts, ``(B, C, h, w)``.
        unconditional: The unconditional prediction; the same tensor as ``conditional`` where
            guidance needs none.
        after: Latents after the step, in the sampler's own scale.
    """

    x: Tensor
    t: Tensor
    conditional: Tensor
    unconditional: Tensor
    after: Tensor


def rollout(
    backbone: Backbone,
    conditioning: Conditioning,
    seeds: Sequence[int],
    *,
    steps: int,
    guidance: float,
    size: Size | None = None,
    start: Tensor | None = None,
) -> Iterator[RolloutStep]:
    """The steps from noise to latents with guidance, bit-equal to the stock diffusers pipeline.

    Args:
        backbone: The model.
        conditioning: Encoded prompts, ``(B, L, D)``.
        seeds: ``B`` seeds of the initial noise and of all noise that the sampler draws.
        steps: Sampling steps, at least 1.
        guidance: Scale ``s`` of ``uncond + s (cond - uncond)``; at 1 or below there is no
            unconditional prediction. A denoiser that has the scale as an input predicts once.
        size: Height and width in pixels; the model's own by default.
        start: Initial latents ``(B, C, h, w)`` in place of those of the seeds.
    """
    sampler = backbone.sampler(steps, size)
    x = sampler.noise(seeds, backbone.latent_shape(size), backbone.dtype)
    x = x if start is None else start
    twice = guidance > 1 and not backbone.embeds_guidance
    if twice:
        conditioning = Conditioning.cat([backbone.unconditional(len(x)), conditioning])
    for number, t in enumerate(sampler.times):
        read = sampler.scaled(torch.cat([x, x]) if twice else x, number)
        prediction = backbone.denoise(read, t, conditioning, guidance)
        unconditional, conditional = prediction.chunk(2) if twice else (prediction, prediction)
        guided = unconditional + guidance * (conditional - unconditional) if twice else prediction
        after = sampler.step(guided, number, x)
        yield RolloutStep(read[: len(x)], t, conditional, unconditional, after)
        x = after


@torch.no_grad()
def sample_latents(
    backbone: Backbone,
    prompts: Sequence[str | Phrase],
    seeds: Sequence[int],
    *,
    steps: int,
    guidance: float,
    size: Size | None = None,
) -> Tensor:
    """Latents ``(B, C, h, w)`` for prompts and seeds.

    A seed gives the same noise in any batch and order.

    Args:
        backbone: The model.
        prompts: ``B`` prompts.
        seeds: ``B`` seeds.
        steps: Sampling steps, at least 1.
        guidance: Scale of classifier-free guidance.
        size: Height and width in pixels; the model's own by default.
    """
    conditioning = backbone.encode(prompts)
    return final_latents(
        rollout(backbone, conditioning, seeds, steps=steps, guidance=guidance, size=size)
    )


def final_latents(steps: Iterator[RolloutStep]) -> Tensor:
    """Clean latents ``(B, C, h, w)`` at the end of a rollout."""
    for step in steps:
        latents = step.after
    return latents


@torch.no_grad()
def sample_images(
    backbone: Backbone,
    prompts: Sequence[str | Phrase],
    seeds: Sequence[int],
    *,
    steps: int,
    guidance: float,
    size: Size | None = None,
) -> Tensor:
    """Images ``(B, 3, H, W)`` in 0..1 for prompts and seeds; arguments as `sample_latents`."""
    latents = sample_latents(backbone, prompts, seeds, steps=steps, guidance=guidance, size=size)
    return backbone.decode(latents)
