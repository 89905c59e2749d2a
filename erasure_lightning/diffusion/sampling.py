"""Sampling: the rollout from noise to latents, and its images."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from erasure_lightning.backbones.base import Backbone
from erasure_lightning.backbones.conditioning import Conditioning
from erasure_lightning.backbones.interface import Size
from erasure_lightning.concepts.concept import Phrase


@torch.no_grad()
def image_size(backbone: Backbone, size: Size | None = None) -> tuple[int, int]:
    """Height and width of a model's images, in pixels: those of decoded empty latents.

    Args:
        backbone: The model.
        size: Height and width to sample at, in pixels; the model's own by default.
    """
    latents = torch.zeros(1, *backbone.latent_shape(size)).to(backbone.device)
    height, width = backbone.decode(latents).shape[2:]
    return height, width


class GuidedPrediction(NamedTuple):
    """Native predictions with and without guidance, ``(B, C, h, w)`` each.

    Args:
        guided: ``uncond + s (cond - uncond)``.
        conditional: The prediction for the prompts.
        unconditional: The unconditional prediction; the same tensor as ``conditional`` where
            guidance needs none.
    """

    guided: Tensor
    conditional: Tensor
    unconditional: Tensor


def guided_predictor(
    backbone: Backbone, conditioning: Conditioning, guidance: float
) -> Callable[[Tensor, Tensor], GuidedPrediction]:
    """Classifier-free guidance: predictions at latents ``(B, C, h, w)`` of a time ``()``.

    Args:
        backbone: The model.
        conditioning: Encoded prompts, ``(B, L, D)``.
        guidance: Scale ``s``; at 1 or below there is no unconditional prediction. A denoiser that
            has the scale as an input predicts once.
    """
    twice = guidance > 1 and not backbone.embeds_guidance
    if twice:
        conditioning = Conditioning.cat([backbone.unconditional(len(conditioning)), conditioning])

    def predict(x: Tensor, t: Tensor) -> GuidedPrediction:
        prediction = backbone.denoise(torch.cat([x, x]) if twice else x, t, conditioning, guidance)
        if not twice:
            return GuidedPrediction(prediction, prediction, prediction)
        unconditional, conditional = prediction.chunk(2)
        guided = unconditional + guidance * (conditional - unconditional)
        return GuidedPrediction(guided, conditional, unconditional)

    return predict


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
) -> Iterator[RolloutStep]:
    """The steps from noise to latents with guidance, bit-equal to the stock diffusers pipeline.

    Args:
        backbone: The model.
        conditioning: Encoded prompts, ``(B, L, D)``.
        seeds: ``B`` seeds of the initial noise and of all noise that the sampler draws.
        steps: Sampling steps, at least 1.
        guidance: As in `guided_predictor`.
        size: Height and width in pixels; the model's own by default.
    """
    sampler = backbone.sampler(steps, size)
    x = sampler.noise(seeds, backbone.latent_shape(size), backbone.dtype)
    predict = guided_predictor(backbone, conditioning, guidance)
    for number, t in enumerate(sampler.times):
        scaled = sampler.scaled(x, number)
        guided, conditional, unconditional = predict(scaled, t)
        after = sampler.step(guided, number, x)
        yield RolloutStep(scaled, t, conditional, unconditional, after)
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
