"""The one loop from noise to latents."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from erasure_lightning.backbones.base import Backbone, Conditioning
from erasure_lightning.concepts import Phrase


class Moment(NamedTuple):
    """One step of a trajectory.

    Args:
        x: Latents ``(B, C, h, w)`` before the step.
        t: The time of the step, ``()``.
        conditional: The prediction for the prompts, ``(B, C, h, w)``.
        unconditional: The prediction for the empty prompt; the same tensor as ``conditional`` without guidance.
        after: Latents behind the step.
    """

    x: Tensor
    t: Tensor
    conditional: Tensor
    unconditional: Tensor
    after: Tensor


def trajectory(
    backbone: Backbone, conditioning: Conditioning, nothing: Conditioning, x: Tensor, steps: int, guidance: float
) -> Iterator[Moment]:
    """Walk from noise to latents with classifier-free guidance, as the stock diffusers pipeline does, bit for bit.

    Args:
        backbone: Whose predictions are followed.
        conditioning: Of the prompts, ``(B, L, D)``.
        nothing: Of the empty prompt, ``(1, L, D)``.
        x: Starting noise, ``(B, C, h, w)``.
        steps: Sampling steps, at least 1.
        guidance: Scale ``s`` of ``uncond + s (cond - uncond)``; at 1 or below the empty prompt is not evaluated.
    """
    scheduler = backbone.scheduler(steps)
    both = nothing.expand(len(x)) + conditioning if guidance > 1 else conditioning
    for t in scheduler.timesteps:
        doubled = torch.cat([x, x]) if guidance > 1 else x
        prediction = backbone.denoise(scheduler.scale_model_input(doubled, t), t, both)
        unconditional, conditional = prediction.chunk(2) if guidance > 1 else (prediction, prediction)
        guided = unconditional + guidance * (conditional - unconditional) if guidance > 1 else prediction
        after = scheduler.step(guided, t, x, return_dict=False)[0]
        yield Moment(x, t, conditional, unconditional, after)
        x = after


@torch.no_grad()
def sample(
    backbone: Backbone,
    prompts: Sequence[str | Phrase],
    seeds: Sequence[int],
    *,
    steps: int,
    guidance: float,
    size: int | tuple[int, int] | None = None,
) -> Tensor:
    """Latents ``(B, C, h, w)`` for prompts at seeds; a seed means the same starting noise in any batch and order.

    Args:
        backbone: The model to ask.
        prompts: ``B`` prompts.
        seeds: ``B`` seeds.
        steps: Sampling steps, at least 1.
        guidance: Scale of classifier-free guidance.
        size: Height and width in pixels; the model's own by default.
    """
    x = backbone.noise(seeds, size)
    for moment in trajectory(backbone, backbone.encode(prompts), backbone.encode([""]), x, steps, guidance):
        x = moment.after
    return x


@torch.no_grad()
def draw(
    backbone: Backbone,
    prompts: Sequence[str | Phrase],
    seeds: Sequence[int],
    *,
    steps: int,
    guidance: float,
    size: int | tuple[int, int] | None = None,
) -> Tensor:
    """Pictures ``(B, 3, H, W)`` in 0..1 for prompts at seeds; arguments as `sample`."""
    return backbone.decode(sample(backbone, prompts, seeds, steps=steps, guidance=guidance, size=size))
