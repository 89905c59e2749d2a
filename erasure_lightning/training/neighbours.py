"""Neighbour-concept mining (RealEra, Liu et al., arXiv 2410.09140): text states that a concept's
are associated with.

Stated by the paper: a neighbour ``e + eta`` of a state ``e`` has ``d(e, e + eta) <= D_1`` and
``cos(e, e + eta)`` in ``[S_1, S_2]``, and what lies beyond keeps its image. Derived here:
neighbours here keep the length ``r`` of their state, as the text encoder's last norm does; then ``d
= r sqrt(2 - 2 cos)``, both constraints are one interval of cosines, and it is drawn from without
rejection. States beyond are orthogonal to ``e``, for any overlap asks the concept itself to stay.
Positions are perturbed one by one (the paper does not say), the start never: all share it.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import cycle
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import mse_loss, normalize

from erasure_lightning.backbones.base import Backbone
from erasure_lightning.backbones.conditioning import Conditioning
from erasure_lightning.concepts.concept import Concept, Phrase, PromptBatch
from erasure_lightning.concepts.vocabulary import Vocabulary, evenly_spaced
from erasure_lightning.errors import ErasureError
from erasure_lightning.training.regression import Regression

#: How neighbours are drawn: at their cosine, or by the paper's words: noise, a look at both
#: constraints, once more.
Sampler = Literal["direct", "reject"]

#: Rounds after which rejection gives up.
ROUNDS = 1000


@dataclass(frozen=True)
class Neighbourhood:
    """Which states count as associated with a concept's, and not yet as the concept itself.

    Args:
        min_cosine: ``S_1``, in 0..1.
        max_cosine: ``S_2``, at least ``min_cosine`` and at most 1.
        max_distance: ``D_1``, Euclidean and above 0; by default what ``min_cosine`` implies.

    Raises:
        ErasureError: If a number is out of range.
    """

    min_cosine: float
    max_cosine: float
    max_distance: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.min_cosine <= self.max_cosine <= 1:
            raise ErasureError(
                "Neighbours need cosines 0 < min_cosine <= max_cosine <= 1; found"
                f" {self.min_cosine} and {self.max_cosine}."
            )
        if self.max_distance is not None and not 0 < self.max_distance < math.inf:
            raise ErasureError(
                f"Neighbours need a max_distance above 0; found {self.max_distance}."
            )

    def lowest(self, states: Tensor) -> Tensor:
        """Lowest cosine of a neighbour of each state, both constraints met, ``(..., D)`` to
        ``(...)``.

        Raises:
            ErasureError: If a state has no neighbour, since ``max_distance`` is too small for
                ``max_cosine``.
        """
        lengths = states.norm(dim=-1)
        if self.max_distance is None:
            return torch.full_like(lengths, self.min_cosine)
        lowest: Tensor = (1 - self.max_distance**2 / (2 * lengths.square())).clamp(
            min=self.min_cosine
        )
        if (lowest > self.max_cosine).any():
            needed = lengths.max().item() * math.sqrt(2 - 2 * self.max_cosine)
            raise ErasureError(
                f"Neighbours need a max_distance of at least {needed:.2f}, where max_cosine"
                f" {self.max_cosine} lies for states of length {lengths.max():.2f}; found"
                f" {self.max_distance}. Raise it, or raise max_cosine."
            )
        return lowest

    def holds(self, states: Tensor, neighbours: Tensor) -> Tensor:
        """Whether each is a neighbour of its state, ``(..., D)`` to boolean ``(...)``."""
        cosines = torch.cosine_similarity(states, neighbours, dim=-1)
        near: Tensor = (neighbours - states).norm(dim=-1) <= (self.max_distance or math.inf)
        return near & (cosines >= self.min_cosine) & (cosines <= self.max_cosine)

    def draw(
        self, states: Tensor, sampler: Sampler = "direct", generator: torch.Generator | None = None
    ) -> Tensor:
        """A random neighbour of each state, ``(..., D)``.

        Args:
            states: Text states.
            sampler: ``direct`` or ``reject``; where ``D`` is large they differ in cost alone.
            generator: Of the randomness; torch's own by default.

        Raises:
            ErasureError: If there are none, or rejection finds none.
        """
        lowest = self.lowest(states)

        def cosines() -> Tensor:
            return lowest + (self.max_cosine - lowest) * _random(torch.rand, lowest, generator)

        if sampler == "direct":
            return around(states, cosines(), generator)
        drawn, missing = states.clone(), torch.ones_like(lowest, dtype=torch.bool)
        for _ in range(ROUNDS):
            noise = _random(torch.randn, states, generator) / math.sqrt(states.shape[-1])
            tried = states + noise * (states.norm(dim=-1) * (cosines() ** -2 - 1).sqrt()).unsqueeze(
                -1
            )
            tried = normalize(tried, dim=-1) * states.norm(dim=-1, keepdim=True)
            found = missing & self.holds(states, tried)
            drawn, missing = torch.where(found.unsqueeze(-1), tried, drawn), missing & ~found
            if not missing.any():
                return drawn
        raise ErasureError(
            f"Rejection found no neighbour in {ROUNDS} rounds between the cosines {self.min_cosine}"
            f" and {self.max_cosine}. Widen them, or use the direct sampler."
        )

    def moments(self, states: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
        """What infinitely many neighbours come to, exactly: ``sum_i E k k^T`` and ``sum_i E a_i
        k^T``, both ``(D, D)``.

        Args:
            states: ``e_i``, ``(N, D)``, around which ``k`` lies.
            images: ``a_i``, ``(N, D)``.
        """
        low, high = self.lowest(states).double(), self.max_cosine
        mean, square = (low + high) / 2, (low**2 + low * high + high**2) / 3
        return (
            gram_around(states, square),
            (mean.unsqueeze(1) * images.double()).mT @ states.double(),
        )


def around(states: Tensor, cosines: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """States of the same length at given cosines to given states, else in random directions,
    ``(..., D)``.
    """
    lengths: Tensor = states.norm(dim=-1, keepdim=True)
    units = normalize(states, dim=-1)
    noise = _random(torch.randn, states, generator)
    across = normalize(noise - (noise * units).sum(dim=-1, keepdim=True) * units, dim=-1)
    cosines = cosines.unsqueeze(-1)
    return lengths * (cosines * units + (1 - cosines.square()).sqrt() * across)


def gram_around(states: Tensor, squares: Tensor) -> Tensor:
    """``sum_i E b b^T`` of states ``b`` around ``e_i``, ``(D, D)`` in float64: the limit of many
    draws of `around`.

    ``E b b^T = r^2 (s^2 u u^T + (1 - s^2) / (D - 1) (I - u u^T))`` with ``u = e / r`` (derived
    here).

    Args:
        states: ``e_i``, ``(N, D)``.
        squares: Mean square ``s^2`` of their cosines, ``(N,)``.
    """
    e = states.double()
    across = (1 - squares.double()) / (e.shape[1] - 1)
    along = ((squares.double() - across).unsqueeze(1) * e).mT @ e
    return along + (across * e.square().sum(dim=1)).sum() * torch.eye(
        e.shape[1], dtype=e.dtype, device=e.device
    )


def beyond(states: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Beyond-concept states: of the same length, orthogonal to the given ones, else random, ``(...,
    D)``.
    """
    return around(states, torch.zeros_like(states[..., 0]), generator)


def beyond_gram(states: Tensor) -> Tensor:
    """``sum_i E b b^T`` of all that is beyond states ``(N, D)``, ``(D, D)`` in float64."""
    return gram_around(states, torch.zeros_like(states[:, 0]))


@dataclass(frozen=True)
class Mining:
    """Stage A's terms for a concept's states: neighbours go where it goes, what is beyond stays.

    Args:
        neighbourhood: Of each state.
        neighbours: ``n``, how many share its weight with it.
        beyond: ``m``, samples of what must stay, which share the term's weight; 0 for none.
        sampler: ``direct``, ``reject``, or ``expectation`` for what infinitely many samples would
            come to.
        erase_weight: ``lam_e``.
        beyond_weight: ``lam_b``.
    """

    neighbourhood: Neighbourhood
    neighbours: int
    beyond: int
    sampler: Literal["expectation", "direct", "reject"]
    erase_weight: float
    beyond_weight: float

    def write(
        self, equations: Regression, states: Tensor, images: Tensor, scale: float, seed: int
    ) -> None:
        """Add the terms to normal equations.

        Args:
            equations: Where to.
            states: ``e_i``, ``(N, D)``.
            images: ``a_i``, ``(N, D)``.
            scale: Part of the weights that each state gets.
            seed: Of the samples.
        """
        share, generator = (
            scale * self.erase_weight / (self.neighbours + 1),
            torch.Generator().manual_seed(seed),
        )
        equations.redirect(states, images, share)
        if self.sampler == "expectation":
            if self.neighbours:
                equations.expect(
                    *self.neighbourhood.moments(states, images), share * self.neighbours
                )
            if self.beyond:
                equations.hold(beyond_gram(states), scale * self.beyond_weight)
            return
        for _ in range(self.neighbours):
            equations.redirect(
                self.neighbourhood.draw(states, self.sampler, generator), images, share
            )
        for _ in range(self.beyond):
            equations.keep(beyond(states, generator), scale * self.beyond_weight / self.beyond)


def sentences(concept: Concept, vocabulary: Vocabulary, index: int = 0) -> PromptBatch:
    """All sentences a concept is put into, those of a style on things that are kept.

    Args:
        concept: The concept.
        vocabulary: What is kept.
        index: The concept's number among the method's.
    """
    templates = vocabulary.templates(concept.kind)
    things = cycle(evenly_spaced(vocabulary.others, len(templates)) or [""])
    filled = [t.replace("{thing}", thing) for t, thing in zip(templates, things, strict=False)]
    count = len(filled)
    return PromptBatch(filled, [concept.name] * count, [concept.anchor] * count, [index] * count)


def exchanged(conditioning: Conditioning, where: Tensor, states: Tensor) -> Conditioning:
    """The conditioning with other states ``(B, L, D)`` at some positions ``(B, L)``; all others
    bit-identical.
    """
    return conditioning.with_tokens(torch.where(where.unsqueeze(2), states, conditioning.tokens))


def beyond_drift(
    edited: Backbone, original: Backbone, x: Tensor, t: Tensor, prompts: Sequence[str | Phrase]
) -> Tensor:
    """``L_bey = E |eps(x, t, b) - eps*(x, t, b)|^2``, a scalar; 0 while a model is its original.

    The pooled vector, where the family has one, is exchanged as the tokens are.

    Args:
        edited: The model that changes.
        original: What it was; its text towers encode the prompts.
        x: Noisy latents ``(B, C, h, w)``.
        t: Their times ``(B,)``.
        prompts: The concepts', ``B`` of them, from whose states ``b`` is drawn.
    """
    plain = original.encode(prompts)
    elsewhere = exchanged(plain, plain.from_concept(), beyond(plain.tokens))
    if plain.pooled is not None:
        elsewhere = replace(elsewhere, pooled=beyond(plain.pooled))
    with torch.no_grad():
        before = original.denoise(x, t, elsewhere)
    return mse_loss(edited.denoise(x, t, elsewhere), before)


def _random(draw: Callable[..., Tensor], like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Numbers from the CPU's generator, so that every device sees the same."""
    return draw(like.shape, generator=generator).to(like)
