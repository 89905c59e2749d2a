"""`StochasticTrajectories`: cached ancestral trajectories of anchors, for losses of likelihood."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from erasure_lightning.backbones.base import Backbone
from erasure_lightning.checks import require
from erasure_lightning.concepts.concept import PromptBatch
from erasure_lightning.diffusion.stochastic_steps import StochasticStep, ancestral_rollout
from erasure_lightning.training.latent_sources import (
    NoisyBatch,
    SourceModels,
    anchor_conditioning,
    random_rows,
)
from erasure_lightning.training.trajectory_bank import TrajectoryBank


@dataclass(frozen=True, kw_only=True)
class TransitionBatch(NoisyBatch):
    """Steps of stochastic trajectories: latents and those that were drawn after them.

    Args:
        after: Latents after the steps, ``(B, C, h, w)``.
        after_t: Their times, ``(B,)``.
        original_density: Log-density of each step when the original drew it, mean over elements,
            ``(B,)``.
        steps: Number of steps of each trajectory, which follow one another; divides ``B``.
    """

    after: Tensor
    after_t: Tensor
    original_density: Tensor
    steps: int = 1


class StochasticTrajectories(TrajectoryBank):
    """Caches ancestral trajectories of the frozen original for the anchors' sentences.

    A concept without an anchor has trajectories without a prompt.

    Args:
        trajectories: Number of rollouts, at least 1, and at least one a concept.
        steps: Sampling steps of each, at least 2.
        guidance: Scale of classifier-free guidance.
        eta: Share of the noising posterior's deviation in every step, above 0 and at most 1.
        early: Random steps a draw among those before the ``late`` ones, at least 0.
        late: Last steps of a trajectory, all of which are drawn, at least 1.
        refresh: Roll out again after this many draws; 0 for never.
        batch_size: Trajectories rolled out side by side.

    Raises:
        ErasureError: If a number is out of range.
    """

    _query = "anchor"
    _fields: ClassVar[Mapping[str, str]] = {"x": "x", "after": "after", "density": "log_density"}
    _times: ClassVar[Mapping[str, str]] = {"t": "t", "after t": "after_t"}

    def __init__(
        self,
        trajectories: int = 32,
        steps: int = 50,
        guidance: float = 5.0,
        eta: float = 1.0,
        early: int = 10,
        late: int = 10,
        refresh: int = 0,
        batch_size: int = 16,
    ) -> None:
        super().__init__(trajectories, steps, guidance, refresh=refresh, batch_size=batch_size)
        require("StochasticTrajectories", at_least=2, steps=steps)
        require("StochasticTrajectories", above=0, at_most=1, eta=eta)
        require("StochasticTrajectories", at_least=0, early=early)
        require("StochasticTrajectories", at_least=1, late=late)
        self.eta = eta
        self.early = early
        self.late = late

    def _steps(
        self, backbone: Backbone, sentences: PromptBatch, seeds: Sequence[int]
    ) -> Iterable[StochasticStep]:
        return ancestral_rollout(
            backbone,
            anchor_conditioning(backbone, sentences),
            seeds,
            steps=self.steps,
            guidance=self.guidance,
            eta=self.eta,
        )

    def draw(self, sentences: PromptBatch, models: SourceModels) -> TransitionBatch:
        """Steps of a random trajectory of each sentence's concept, one trajectory after another.

        The batch has the trajectories' own sentences, with the concepts' words; all late steps and
        random early ones, the same of every trajectory.
        """
        self.update(models)
        rows = torch.tensor(random_rows(self.sentences, sentences.indices))
        self._draws += 1
        first_late = max(self.length - self.late, 0)
        early = torch.randperm(first_late)[: self.early]
        columns = torch.cat((early, torch.arange(first_late, self.length)))
        each = rows.repeat_interleave(len(columns))
        batch = self.at(each, columns.repeat(len(rows)), models.original)
        return replace(batch, steps=len(columns))

    def at(self, rows: Tensor, columns: Tensor, original: Backbone) -> TransitionBatch:
        """Some steps of some trajectories.

        Args:
            rows: Numbers of the trajectories, ``(B,)``.
            columns: Number of a step of each, ``(B,)``.
            original: The model of the teacher's predictions.
        """
        batch = super().at(rows, columns, original)
        return TransitionBatch(
            batch.x,
            batch.t,
            batch.sentences,
            batch.teacher,
            batch.rows,
            after=self._at("after", rows, columns),
            after_t=self._held["after t"][rows, columns],
            original_density=self._at("density", rows, columns),
        )
