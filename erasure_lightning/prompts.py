"""What methods do with embedded prompts: walk their templates' words, exchange templates, line up spans."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from erasure_lightning.backbones.base import TEMPLATE, Backbone, Embedded
from erasure_lightning.errors import ErasureError
from erasure_lightning.functional import aligned

#: Prompts as every text encoder of a backbone reads them.
Prompts = tuple[Embedded, ...]


def climb(start: Prompts, height: Callable[[Prompts], Tensor], sizes: tuple[Tensor, ...], steps: int) -> Prompts:
    """Walk the template's word embeddings up a score by gradient steps of fixed length.

    Only `TEMPLATE` positions move; start, concept, end and padding stay what they are.

    Args:
        start: Where the walk begins.
        height: The score of prompts, ``(B,)``.
        sizes: For each text encoder, how far the word that moves farthest goes in a step.
        steps: How many, at least 0.
    """
    for _ in range(steps):
        words = [e.embeddings.detach().requires_grad_(True) for e in start]
        here = tuple(replace(e, embeddings=w) for e, w in zip(start, words, strict=True))
        slopes = torch.autograd.grad(height(here).sum(), words)
        start = tuple(_step(e, g, size) for e, g, size in zip(start, slopes, sizes, strict=True))
    return start


def _step(prompts: Embedded, slope: Tensor, size: Tensor) -> Embedded:
    slope = slope * prompts.positions(TEMPLATE).unsqueeze(2)
    longest = slope.norm(dim=2).amax(dim=1).clamp(min=1e-12)
    return replace(prompts, embeddings=prompts.embeddings.detach() + size * slope / longest.view(-1, 1, 1))


def with_random_template(prompts: Embedded, table: Tensor) -> Embedded:
    """The prompts with random words of the vocabulary ``(V, E)`` in their templates' place."""
    words = table[torch.randint(len(table), prompts.ids.shape).to(table.device)]
    return replace(prompts, embeddings=torch.where(prompts.positions(TEMPLATE).unsqueeze(2), words, prompts.embeddings))


def with_template_of(prompts: Embedded, other: Embedded) -> Embedded:
    """The prompts' own concept words in the other prompts' templates.

    Raises:
        ErasureError: If a template is longer in one than in the other, which happens where the encoder cuts it short.
    """
    here, there = prompts.positions(TEMPLATE), other.positions(TEMPLATE)
    if not torch.equal(here.sum(dim=1), there.sum(dim=1)):
        raise ErasureError("The encoder needs to hold each sentence with concept and with anchor; found one cut short.")
    embeddings = prompts.embeddings.clone()
    embeddings[here] = other.embeddings.detach()[there]
    return replace(prompts, embeddings=embeddings)


def aligned_states(backbone: Backbone, prompts: Prompts, like: Prompts) -> Tensor:
    """States of ``prompts`` ``(B, L, D)``, each at the position where ``like`` has what corresponds to it.

    Both are the same sentences but for the concept's words: before them positions agree, span meets
    span, end meets end.
    """
    tokens, span = backbone.contextualize(prompts).tokens, like[0].span()
    place = aligned(span, prompts[0].span(otherwise=span[:, 0]), tokens.shape[1])
    return tokens.gather(1, place.unsqueeze(2).expand_as(tokens))
