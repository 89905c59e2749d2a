"""RealEra: neighbour-concept mining (Liu et al., arXiv 2410.09140; withdrawn from ICLR 2025).

Random neighbours of the concept's text states are erased with the concept, and states beyond them
are retained: first in closed form in the text layers (stage A), then in low-rank adapters that
align noise predictions (stage B). With neighbours ``e + eta`` of a state ``e``, the image ``a`` of
the anchor's state and states ``b`` beyond,

    ``J(W) = lam_e sum |W (e + eta) - W* a|^2 + lam_b sum |(W - W*) b|^2 + lam |W - W*|^2``

    ``L = mse( eps(e + eta), eps*(c_a) ) + lam_b' |eps(b) - eps*(b)|^2``

Stated by the paper: mining under ``d <= D_1`` and ``cos in [S_1, S_2]``, beyond-concept
regularisation, and both stages. No code was published: the terms are inferred with high confidence,
their weights are ours, as is the form of what lies beyond. By default stage A takes the expectation
over all neighbours exactly. Its default weights are UCE's, stage B's rate, rank, optimizer and
``gaussian`` adapters MACE's for things (1e-4 there for people and styles). No cosine bounds were
published: ``erasure calibrate`` measures what suits a model.

Cost: stage A encodes ten sentences a concept and solves one system, no denoiser. A step of stage B
takes three forwards and two backwards of the denoiser on the batch, and a fourth forward where no
bank has cached the anchor's prediction.
"""

from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from erasure_lightning.adapters.lora import LoraInit
from erasure_lightning.backbones.base import Backbone
from erasure_lightning.backbones.conditioning import Conditioning
from erasure_lightning.backbones.interface import TextInput
from erasure_lightning.checks import require
from erasure_lightning.concepts.concept import PromptBatch
from erasure_lightning.seeding import derive_seed
from erasure_lightning.training.adapter_methods import LoraErasure
from erasure_lightning.training.base import ErasureModule
from erasure_lightning.training.closed_form import ClosedFormErasure
from erasure_lightning.training.latent_sources import NoisyBatch
from erasure_lightning.training.neighbours import (
    Mining,
    Neighbourhood,
    NeighbourSampler,
    beyond_predictions,
    replace_states,
)
from erasure_lightning.training.optimizers import OptimizerName
from erasure_lightning.training.prompt_states import aligned_states
from erasure_lightning.training.regression import Regression
from erasure_lightning.training.text_regressions import solve_text_inputs


class NeighbourMining(ErasureModule):
    """Base of both variants: the concepts' neighbourhoods, and stage A.

    Args:
        min_cosine: ``S_1``, of a neighbour to its state, in 0..1; ``erasure calibrate`` measures
            what suits a concept.
        max_cosine: ``S_2``, from ``min_cosine`` to 1.
        max_distance: ``D_1``, above 0; by default what ``min_cosine`` implies.
        neighbours: ``n``, number of neighbours that share a state's weight with it; 0 for none.
        beyond: ``m``, number of states beyond each state; 0 for none.
        sampler: ``direct`` and ``reject`` sample neighbours; ``expectation`` is the limit of
            infinitely many samples in stage A, and samples directly in stage B.
        erase_weight: ``lam_e`` of a concept, shared by its sentences and their positions; at least
            0.
        beyond_weight: ``lam_b`` of all concepts together, at least 0.
        ridge: ``lam``, pull of stage A towards the old weights, above 0.
        kwargs: Arguments of `ErasureModule`.

    Raises:
        ErasureError: If a number is out of range.
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
        owner = type(self).__name__
        require(owner, at_least=0, neighbours=neighbours, beyond=beyond)
        require(owner, at_least=0, erase_weight=erase_weight, beyond_weight=beyond_weight)
        require(owner, above=0, ridge=ridge)
        self.neighbourhood = Neighbourhood(min_cosine, max_cosine, max_distance)
        self.mining = Mining(
            self.neighbourhood,
            neighbours,
            beyond,
            sampler,
            erase_weight,
            # Of each concept: what lies beyond is nearly the same for all, and would add up.
            beyond_weight / len(self.concepts),
        )
        self.ridge = ridge

    def stage_a(self) -> dict[str, Tensor]:
        """New weights of every text input, by name: the minimiser of ``J``."""
        return solve_text_inputs(self, self._fill, self.ridge)

    def _fill(self, equations: Regression, source: TextInput) -> None:
        """Adds the terms of every concept."""
        for index in range(len(self.concepts)):
            batch = self.prompts.sentences(index)
            self._add_concept(equations, batch, source, derive_seed(self.seed, index, 6))

    def _add_concept(
        self, equations: Regression, batch: PromptBatch, source: TextInput, seed: int
    ) -> None:
        """Adds the terms of a concept; positions that do not depend on its words are retained."""
        concept = self.original.encode(batch.prompts)
        anchor = self.original.encode(batch.anchor_prompts)
        states = source.rows(concept)
        mined = source.reads_concept(concept)
        images = source.rows(anchor)
        if source.source == "tokens":
            images = aligned_states(anchor.with_tokens(images), like=concept)
        scale = 1 / int(source.read(concept).sum())
        equations.keep(states[~mined], scale * self.mining.erase_weight)
        self.mining.write(equations, states[mined], images[mined], scale, seed)


class RealEraClosedForm(NeighbourMining, ClosedFormErasure):
    """RealEra's stage A alone: one linear system, no training."""

    def solve(self) -> dict[str, Tensor]:
        """The minimiser of ``J``."""
        return self.stage_a()


class RealEra(NeighbourMining, LoraErasure):
    """RealEra: stage A, then low-rank adapters trained on noise predictions.

    Args:
        closed_form: Start with stage A; without it, stage B starts from the original.
        noise_weight: ``lam_b'`` of the beyond term in stage B, at least 0.
        lora_init: As in `LoraErasure`.
        lr: Highest learning rate.
        optimizer: As in every gradient method.
        kwargs: Arguments of `NeighbourMining` and `LoraErasure`.

    Raises:
        ErasureError: If a number is out of range.
    """

    def __init__(
        self,
        *,
        closed_form: bool = True,
        noise_weight: float = 1.0,
        lora_init: LoraInit = "gaussian",
        lr: float = 1e-5,
        optimizer: OptimizerName = "adamw",
        **kwargs: Any,
    ) -> None:
        super().__init__(lora_init=lora_init, lr=lr, optimizer=optimizer, **kwargs)
        require("RealEra", at_least=0, noise_weight=noise_weight)
        self.closed_form = closed_form
        self.noise_weight = noise_weight

    def changes_weights(self) -> bool:
        """Whether the weights beneath adapters change, by merging or by stage A."""
        return self.merge or self.closed_form

    def modified(self) -> list[str]:
        """The layers with adapters, and whatever else stage A solves for."""
        wrapped = super().modified()
        solved = [f"{name}.weight" for name in wrapped] if self.closed_form else []
        return wrapped + solved + self._solved_only(self.backbone)

    def in_float32(self) -> dict[str, nn.Parameter]:
        """What is trained, and what stage A solves for, if it does."""
        return self.editable() if self.closed_form else super().in_float32()

    def editable(self) -> dict[str, nn.Parameter]:
        """The layers with adapters, and whatever else stage A solves for."""
        names = self._solved_only(self.original)
        return super().editable() | {name: self.backbone.get_parameter(name) for name in names}

    def _solved_only(self, backbone: Backbone) -> list[str]:
        """Names of weights that only stage A edits: those of text inputs without an adapter."""
        inputs = backbone.text_inputs() if self.closed_form else []
        names = [name for source in inputs for name in source.layers]
        adapted = {f"denoiser.{layer}" for layer in self._plan.layers}
        return [f"{name}.weight" for name in names if name not in adapted]

    @torch.no_grad()
    def on_train_start(self) -> None:
        """Stage A, in the weights under the adapters; a resumed run has it in its checkpoint."""
        super().on_train_start()
        if self.closed_form and not self.global_step:
            solution = self.stage_a()
            self.write({self.base_weight_name(name): solution[name] for name in solution})

    def erasure_loss(self, batch: NoisyBatch) -> Tensor:
        """``mse(eps(e + eta), eps*(c_a)) + lam_b' L_bey``, a scalar."""
        perturbed = self.perturbed(self.concept_conditioning(batch))
        prediction = self.student(batch, perturbed)
        loss = self.prediction_error(prediction, batch.teacher.anchor, batch.t)
        if self.mining.beyond and self.noise_weight:
            beyond = beyond_predictions(
                self.backbone, self.original, batch.x, batch.t, batch.prompts
            )
            loss = loss + self.noise_weight * self.prediction_error(*beyond, batch.t)
        return loss

    def perturbed(self, prompts: Conditioning) -> Conditioning:
        """Half of the batch with random neighbours from the concept's words on.

        Of an odd batch the larger or the smaller half, at random. The pooled vector, where the
        family has one, has a neighbour of its own.
        """
        if not self.mining.neighbours:
            return prompts
        count = len(prompts)
        where = prompts.reads_concept()
        chosen = 2 * torch.randperm(count) + torch.randint(2, ()) < count
        chosen = chosen.to(where.device).unsqueeze(1)
        sampler: NeighbourSampler = "reject" if self.mining.sampler == "reject" else "direct"
        neighbours = self.neighbourhood.draw(prompts.tokens, sampler)
        perturbed = replace_states(prompts, where & chosen, neighbours)
        if prompts.pooled is None:
            return perturbed
        pooled_neighbours = self.neighbourhood.draw(prompts.pooled, sampler)
        return replace(perturbed, pooled=torch.where(chosen, pooled_neighbours, prompts.pooled))
