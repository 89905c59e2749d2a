"""RealEra: neighbour-concept mining (Liu et al., arXiv 2410.09140; withdrawn from ICLR 2025).

Random neighbours of the concept's text states go where the concept goes, and states beyond them
stay: first in closed form in the text layers (stage A), then in low-rank adapters that align noise
predictions (stage B).

Stated by the paper: mining under ``d <= D_1`` and ``cos in [S_1, S_2]``, beyond-concept
regularisation, and both stages. No code was published: the terms are inferred with high confidence,
their weights are ours, as is the form of what lies beyond. Where it can, stage A takes the mean
over all neighbours exactly. Its weights by default are UCE's, stage B's rate, rank and optimizer
MACE's for things (1e-4 there for people and styles). No cosine bounds were
published: ``erasure calibrate`` measures what fits a model.

Cost: stage A encodes ten sentences a concept and solves one system, no denoiser. A step of stage B
    takes three forwards
and two backwards of the denoiser on the batch, and a fourth forward where no bank holds the
anchor's prediction.
"""

from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from erasure_lightning.backbones.base import Backbone
from erasure_lightning.backbones.conditioning import Conditioning
from erasure_lightning.backbones.interface import TextInput
from erasure_lightning.concepts.concept import PromptBatch
from erasure_lightning.concepts.vocabulary import Vocabulary
from erasure_lightning.errors import ErasureError
from erasure_lightning.seeding import derive_seed
from erasure_lightning.training.adapter_methods import LoraErasure
from erasure_lightning.training.base import ErasureModule
from erasure_lightning.training.closed_form import ClosedFormErasure
from erasure_lightning.training.latent_sources import NoisyBatch
from erasure_lightning.training.neighbours import (
    Mining,
    Neighbourhood,
    beyond_drift,
    exchanged,
    sentences,
)
from erasure_lightning.training.optimizers import Kind
from erasure_lightning.training.prompt_states import aligned_states
from erasure_lightning.training.regression import Regression


class NeighbourMining(ErasureModule):
    """What both variants share: the concepts' neighbourhoods, and stage A.

    Args:
        min_cosine: ``S_1``, of a neighbour to its state, in 0..1; ``erasure calibrate`` measures
            what fits a concept.
        max_cosine: ``S_2``, from ``min_cosine`` to 1.
        max_distance: ``D_1``, above 0; by default what ``min_cosine`` implies.
        neighbours: ``n`` of each state, which share its weight with it; 0 for none.
        beyond: ``m`` samples of each state's beyond; 0 for none.
        sampler: ``expectation`` stands for infinitely many samples in stage A and draws directly in
            stage B; ``direct`` and ``reject`` draw them.
        erase_weight: ``lam_e`` of a concept, whose sentences, and their positions, share it.
        beyond_weight: ``lam_b`` of all concepts together.
        ridge: ``lam``, pull of stage A towards the old weights, above 0.
        kwargs: Arguments of every method.
    """

    def __init__(
        self,
        *,
        min_cosine: float = 0.7,
        max_cosine: float = 0.9,
        max_distance: float | None = None,
        neighbours: int = 50,
        beyond: int = 50,
        sampler: Literal["expectation", "direct", "reject"] = "expectation",
        erase_weight: float = 1.0,
        beyond_weight: float = 1.0,
        ridge: float = 0.5,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if min(neighbours, beyond, erase_weight, beyond_weight) < 0 or ridge <= 0:
            raise ErasureError(
                f"{type(self).__name__} needs neighbours, beyond and weights of at least 0 and a"
                f" ridge above 0; found {neighbours}, {beyond}, {erase_weight}, {beyond_weight} and"
                f" {ridge}."
            )
        self.neighbourhood = Neighbourhood(min_cosine, max_cosine, max_distance)
        shared = beyond_weight / len(
            self.concepts
        )  # what is beyond is the same for all: they would add up
        self.mining = Mining(self.neighbourhood, neighbours, beyond, sampler, erase_weight, shared)
        self.ridge = ridge

    def stage_a(self) -> dict[str, Tensor]:
        """New weights of every text input, by name: the minimiser of ``J``."""
        return self.solve_each(self._fill, self.ridge)

    def _fill(self, equations: Regression, source: TextInput) -> None:
        """Every concept's terms."""
        vocabulary = Vocabulary(self.original.world, self.concepts)
        for place, concept in enumerate(self.concepts):
            self._write(
                equations, sentences(concept, vocabulary), source, derive_seed(self.seed, place, 6)
            )

    def _write(
        self, equations: Regression, batch: PromptBatch, source: TextInput, seed: int
    ) -> None:
        """A concept's terms; what stands before its words is to stay."""
        plain, anchor = self.original.encode(batch.prompts), self.original.encode(batch.targets)
        states, mined = source.rows(plain), source.from_concept(plain)
        images = (
            aligned_states(anchor, like=plain) if source.source == "tokens" else source.rows(anchor)
        )
        scale = 1 / states[..., 0].numel()
        equations.keep(states[~mined], scale * self.mining.erase_weight)
        self.mining.write(equations, states[mined], images[mined], scale, seed)


class RealEraClosedForm(NeighbourMining, ClosedFormErasure):
    """RealEra's stage A alone: one linear system, no training."""

    def solve(self) -> dict[str, Tensor]:
        """The minimiser of ``J``."""
        return self.stage_a()


class RealEra(NeighbourMining, LoraErasure):
    """RealEra: stage A, and from there low-rank adapters trained on noise predictions.

    Args:
        closed_form: Begin with stage A; without it, stage B starts from the original.
        noise_weight: ``lam_b'`` of the beyond term in stage B, at least 0.
        lr: Highest learning rate.
        optimizer: As in every gradient method.
        kwargs: Of `NeighbourMining` and `LoraErasure`.
    """

    def __init__(
        self,
        *,
        closed_form: bool = True,
        noise_weight: float = 1.0,
        lr: float = 1e-5,
        optimizer: Kind = "adamw",
        **kwargs: Any,
    ) -> None:
        super().__init__(lr=lr, optimizer=optimizer, **kwargs)
        if noise_weight < 0:
            raise ErasureError(f"RealEra needs a noise_weight of at least 0; found {noise_weight}.")
        self.closed_form = closed_form
        self.noise_weight = noise_weight

    def modified(self) -> list[str]:
        """The layers with adapters, and whatever else stage A solves for."""
        return super().modified() + self._solved_alone(self.backbone)

    def editable(self) -> dict[str, nn.Parameter]:
        """The layers with adapters, and whatever else stage A solves for."""
        alone = {
            name: self.backbone.get_parameter(name) for name in self._solved_alone(self.original)
        }
        return super().editable() | alone

    def _solved_alone(self, backbone: Backbone) -> list[str]:
        """Weights of text inputs that stage A alone edits, by name: all but those that read tokens."""
        others = backbone.text_inputs()[1:] if self.closed_form else []
        return [f"{name}.weight" for source in others for name in source.layers]

    @torch.no_grad()
    def on_train_start(self) -> None:
        """Stage A, beneath the adapters; a resumed run has it in its checkpoint."""
        super().on_train_start()
        if self.closed_form and not self.global_step:
            self.write({self.beneath(name): weight for name, weight in self.stage_a().items()})

    def erasure_loss(self, batch: NoisyBatch) -> Tensor:
        """``L_era + lam_b' L_bey``, a scalar."""
        prediction = self.student(batch, self.perturbed(self.original.encode(batch.prompts)))
        loss = mse_loss(prediction, batch.teacher.anchor)
        if self.mining.beyond and self.noise_weight:
            drift = beyond_drift(self.backbone, self.original, batch.x, batch.t, batch.prompts)
            loss = loss + self.noise_weight * drift
        return loss

    def perturbed(self, prompts: Conditioning) -> Conditioning:
        """Half of the batch with fresh neighbours from the concept's words on, at random if it is
        odd.

        The pooled vector, where the family has one, has a neighbour of its own.
        """
        if not self.mining.neighbours:
            return prompts
        count, where = len(prompts), prompts.from_concept()
        chosen = (
            (2 * torch.randperm(count) + torch.randint(2, ()) < count).to(where.device).unsqueeze(1)
        )
        sampler: Literal["reject", "direct"] = (
            "reject" if self.mining.sampler == "reject" else "direct"
        )
        near = exchanged(prompts, where & chosen, self.neighbourhood.draw(prompts.tokens, sampler))
        if prompts.pooled is None:
            return near
        pooled = torch.where(
            chosen, self.neighbourhood.draw(prompts.pooled, sampler), prompts.pooled
        )
        return replace(near, pooled=pooled)
