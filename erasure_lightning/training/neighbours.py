"""Neighbour-concept mining (RealEra, Liu et al., arXiv 2410.09140).

Stated by the paper: a neighbour ``e + eta`` of a text state ``e`` has ``d(e, e + eta) <= D_1`` and
``cos(e, e + eta)`` in ``[S_1, S_2]``, and what lies beyond retains its image.

Derived here: neighbours have the length ``r`` of their state, as the text encoder's last norm gives
it. Then ``d = r sqrt(2 - 2 cos)``, so that both constraints are one interval of cosines, which is
sampled without rejection. States beyond are orthogonal to ``e``: any overlap would retain the
concept itself. Both have the channels of their state: in SD 3 CLIP's are padded with zeros to T5's
width. Every position is perturbed on its own (the paper does not say), the start token
never, since all prompts share it.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from erasure_lightning.backbones.base import Backbone
from erasure_lightning.backbones.conditioning import Conditioning
from erasure_lightning.concepts.concept import Phrase
from erasure_lightning.errors import ErasureError
from erasure_lightning.training.regression import Regression

#: How neighbours are sampled: directly at a cosine, or as the paper words it, by rejection of noise
#: that violates a constraint.
NeighbourSampler = Literal["direct", "reject"]

#: Rounds after which rejection sampling gives up.
_ROUNDS = 1000


@dataclass(frozen=True)
class Neighbourhood:
    """The states that count as associated with a state, but not as the concept itself.

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

    def lowest_cosines(self, states: Tensor) -> Tensor:
        """The lowest cosine that meets both constraints, of each state, ``(..., D)`` to ``(...)``.

        Raises:
            ErasureError: If a state has no neighbour, since ``max_distance`` is too small for
                ``max_cosine``.
        """
        lengths = states.norm(dim=-1)
        if self.max_distance is None:
            return torch.full_like(lengths, self.min_cosine)
        implied = 1 - self.max_distance**2 / (2 * lengths.square())
        lowest: Tensor = implied.clamp(min=self.min_cosine)
        if (lowest > self.max_cosine).any():
            needed = lengths.max().item() * math.sqrt(2 - 2 * self.max_cosine)
            raise ErasureError(
                f"Neighbours need a max_distance of at least {needed:.2f}, where max_cosine"
                f" {self.max_cosine} lies for states of length {lengths.max():.2f}; found"
                f" {self.max_distance}. Raise it, or raise max_cosine."
            )
        return lowest

    def contains(self, states: Tensor, others: Tensor) -> Tensor:
        """Whether each of ``others`` is a neighbour of its state, ``(..., D)`` to boolean."""
        cosines = torch.cosine_similarity(states, others, dim=-1)
        near: Tensor = (others - states).norm(dim=-1) <= (self.max_distance or math.inf)
        return near & (cosines >= self.min_cosine) & (cosines <= self.max_cosine)

    def draw(
        self,
        states: Tensor,
        sampler: NeighbourSampler = "direct",
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Samples a neighbour of each state, ``(..., D)``.

        Args:
            states: Text states.
            sampler: ``direct`` or ``reject``; where ``D`` is large they differ in cost alone.
            generator: Source of randomness; torch's own by default.

        Raises:
            ErasureError: If a state has no neighbour, or rejection finds none.
        """
        lowest = self.lowest_cosines(states)

        def draw_cosines() -> Tensor:
            return lowest + (self.max_cosine - lowest) * _random(torch.rand, lowest, generator)

        if sampler == "direct":
            return states_at_cosines(states, draw_cosines(), generator)
        lengths = states.norm(dim=-1, keepdim=True)
        neighbours = states.clone()
        missing = lengths.squeeze(-1) > 0  # zeros, in the place of a missing text encoder, stay
        for _ in range(_ROUNDS):
            own = _own_channels(states)
            noise = own * _random(torch.randn, states, generator)
            noise = noise / own.sum(dim=-1, keepdim=True).sqrt()
            scale = states.norm(dim=-1) * (draw_cosines() ** -2 - 1).sqrt()
            candidates = states + noise * scale.unsqueeze(-1)
            candidates = normalize(candidates, dim=-1) * lengths
            accepted = missing & self.contains(states, candidates)
            neighbours = torch.where(accepted.unsqueeze(-1), candidates, neighbours)
            missing = missing & ~accepted
            if not missing.any():
                return neighbours
        raise ErasureError(
            f"Rejection found no neighbour in {_ROUNDS} rounds between the cosines"
            f" {self.min_cosine} and {self.max_cosine}. Widen them, or use the direct sampler."
        )

    def moments(self, states: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
        """Exact moments of all neighbours ``k``: ``sum_i E k k^T`` and ``sum_i E a_i k^T``.

        Args:
            states: ``e_i``, ``(N, D)``, whose neighbours ``k`` are.
            images: ``a_i``, ``(N, D)``.

        Returns:
            Two matrices ``(D, D)`` in float64, the limit of infinitely many samples.
        """
        low = self.lowest_cosines(states).double()
        high = self.max_cosine
        mean = (low + high) / 2
        mean_square = (low**2 + low * high + high**2) / 3
        cross = (mean.unsqueeze(1) * images.double()).mT @ states.double()
        return expected_gram(states, mean_square), cross


def states_at_cosines(
    states: Tensor, cosines: Tensor, generator: torch.Generator | None = None
) -> Tensor:
    """Random states of the length of given ones, at given cosines to them, ``(..., D)``.

    Args:
        states: The given states, ``(..., D)``.
        cosines: Cosines to them, -1..1, ``(...)``.
        generator: Generator of the random draws; by default torch's global one.
    """
    lengths: Tensor = states.norm(dim=-1, keepdim=True)
    units = normalize(states, dim=-1)
    noise = _random(torch.randn, states, generator) * _own_channels(states)
    across = normalize(noise - (noise * units).sum(dim=-1, keepdim=True) * units, dim=-1)
    cosines = cosines.unsqueeze(-1)
    return lengths * (cosines * units + (1 - cosines.square()).sqrt() * across)


def expected_gram(states: Tensor, mean_squares: Tensor) -> Tensor:
    """``sum_i E b b^T`` ``(D, D)`` in float64, the limit of many draws of `states_at_cosines`.

    ``E b b^T = r^2 (s^2 u u^T + (1 - s^2) / (D - 1) (I - u u^T))`` with ``u = e / r`` (derived
    here); ``D`` and ``I`` are of a state's own channels.

    Args:
        states: ``e_i``, ``(N, D)``, around which the ``b`` lie.
        mean_squares: Mean square ``s^2`` of their cosines, ``(N,)``.
    """
    e = states.double()
    own = _own_channels(e).double()
    across = (1 - mean_squares.double()) / (own.sum(dim=1) - 1)
    along = ((mean_squares.double() - across).unsqueeze(1) * e).mT @ e
    return along + torch.diag_embed((across * e.square().sum(dim=1)) @ own)


def orthogonal_states(states: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Beyond-concept states: random, orthogonal to ``states`` and of equal length, ``(..., D)``."""
    return states_at_cosines(states, torch.zeros_like(states[..., 0]), generator)


def orthogonal_gram(states: Tensor) -> Tensor:
    """``sum_i E b b^T`` ``(D, D)`` in float64, of all `orthogonal_states` of states ``(N, D)``."""
    return expected_gram(states, torch.zeros_like(states[:, 0]))


@dataclass(frozen=True)
class Mining:
    """The terms of stage A for a concept's states: neighbours are redirected, the beyond retained.

    Args:
        neighbourhood: Neighbourhood of each state.
        neighbours: ``n``, how many neighbours share a state's weight with it.
        beyond: ``m``, samples of what is retained, which share the term's weight; 0 for none.
        sampler: ``direct``, ``reject``, or ``expectation`` for the limit of infinitely many
            samples.
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
        """Adds the terms to normal equations.

        Args:
            equations: The equations.
            states: ``e_i``, ``(N, D)``.
            images: ``a_i``, ``(N, D)``.
            scale: Part of the weights that each state gets.
            seed: Seed of the samples.
        """
        share = scale * self.erase_weight / (self.neighbours + 1)
        equations.redirect(states, images, share)
        if self.sampler == "expectation":
            if self.neighbours:
                gram, cross = self.neighbourhood.moments(states, images)
                equations.expect(gram, cross, share * self.neighbours)
            if self.beyond:
                equations.hold(orthogonal_gram(states), scale * self.beyond_weight)
            return
        generator = torch.Generator().manual_seed(seed)
        for _ in range(self.neighbours):
            neighbours = self.neighbourhood.draw(states, self.sampler, generator)
            equations.redirect(neighbours, images, share)
        for _ in range(self.beyond):
            weight = scale * self.beyond_weight / self.beyond
            equations.keep(orthogonal_states(states, generator), weight)


def replace_states(conditioning: Conditioning, where: Tensor, states: Tensor) -> Conditioning:
    """The conditioning with ``states`` ``(B, L, D)`` at ``where`` ``(B, L)``; others unchanged."""
    return conditioning.with_tokens(torch.where(where.unsqueeze(2), states, conditioning.tokens))


def beyond_predictions(
    edited: Backbone, original: Backbone, x: Tensor, t: Tensor, prompts: Sequence[str | Phrase]
) -> tuple[Tensor, Tensor]:
    """``eps(x, t, b)`` and ``eps*(x, t, b)`` at states ``b`` beyond concepts, ``(B, C, h, w)``.

    ``L_bey`` is their mean squared error; it is 0 while a model is its original.
    The pooled vector, where the family has one, is replaced as the tokens are.

    Args:
        edited: The model that changes.
        original: Its frozen original, whose text encoders encode the prompts.
        x: Noisy latents ``(B, C, h, w)``.
        t: Their times ``(B,)``.
        prompts: ``B`` prompts of concepts, to whose states ``b`` is orthogonal.
    """
    concept = original.encode(prompts)
    beyond = replace_states(concept, concept.reads_concept(), orthogonal_states(concept.tokens))
    if concept.pooled is not None:
        beyond = replace(beyond, pooled=orthogonal_states(concept.pooled))
    with torch.no_grad():
        target = original.denoise(x, t, beyond)
    return edited.denoise(x, t, beyond), target


def _own_channels(states: Tensor) -> Tensor:
    """Mask of the channels of states that are not 0, boolean ``(..., D)``; all where one is alone.

    Stable Diffusion 3 pads CLIP's states with zeros to T5's width.
    """
    own = states != 0
    return own | (own.sum(dim=-1, keepdim=True) < 2)


def _random(draw: Callable[..., Tensor], like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Random numbers from the CPU's generator, so that every device gets the same ones."""
    return draw(like.shape, generator=generator).to(like)
