"""`Adversary`: base of what searches for conditioning that restores a concept, to be erased too."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Adam, Optimizer

from erasure_lightning.backbones.base import Backbone
from erasure_lightning.backbones.conditioning import Conditioning
from erasure_lightning.checks import require
from erasure_lightning.concepts.concept import PromptBatch
from erasure_lightning.training.latent_sources import NoisyBatch

#: What a search varies, with gradient: rows of a batch or of the concepts, ``(P, ...)`` each.
Point = list[Tensor]

#: Share of the precision's epsilon up to which a relative squared error may be rounding alone.
_ROUNDING = 0.01


@dataclass(frozen=True)
class AdversaryModels:
    """The models that an adversary searches, and how their method trains them.

    Args:
        student: The model that is trained.
        concepts: Names of the concepts.
        predict: Returns the student's predictions at a batch's latents for a conditioning.
        error: Returns the method's error of predictions, targets and times, a scalar.
        draw: Returns new noisy latents for sentences, or for others of the same concepts.
        sentences: Returns ``count`` concept prompts for a ``number``; concepts take turns.
    """

    student: Backbone
    concepts: Sequence[str]
    predict: Callable[[NoisyBatch, Conditioning], Tensor]
    error: Callable[[Tensor, Tensor, Tensor], Tensor]
    draw: Callable[[PromptBatch], NoisyBatch]
    sentences: Callable[[int, int], PromptBatch]


class Adversary(ABC):
    """Base of searches for conditioning under which the student still predicts the concept.

    A method trains the student's prediction for the concept at what the search returns. With ``c'``
    the conditioning that a kind varies, and ``eps*`` the original,

        ``min over c' of mse( eps(x_t, c'), eps*(x_t, c) )``

    STEREO compares with the noise ``n`` of ``x_t`` (`AdversaryModels.error` is the same), RACE with
    that at the start of the rollout to ``x_t``; the original's prediction is the mean of the first,
    so that the minimum is the same and its gradient has less variance. A row takes no step where
    the student predicts as the original but for rounding: gradients are noise there, which Adam and
    signs turn into steps of full length.

    Cost of a step with a search: ``starts * steps`` forwards and backwards more, and as many
    forwards as points are compared at the loss's latents.

    Args:
        begin: First training step with a search, at least 0; before it sentences are plain.
        steps: Steps of a search, at least 0; at 0 sentences are always plain.
        lr: Step size of the search, above 0.
        starts: Number of searches, of which the best result is used for each row; at least 1.
        best: Whether a search returns its best point, not its last.
        share: Share of the training steps from ``begin`` on that have adversarial conditioning, the
            others being plain, above 0 and at most 1; 1 erases it in the plain sentence's place.

    Raises:
        ErasureError: If a number is out of range.
    """

    #: Whether each step of a search has latents of its own, not those of the loss.
    fresh: ClassVar[bool] = False

    def __init__(
        self,
        *,
        begin: int = 200,
        steps: int = 30,
        lr: float = 1e-3,
        starts: int = 1,
        best: bool = False,
        share: float = 1.0,
    ) -> None:
        name = type(self).__name__
        require(name, at_least=0, begin=begin, steps=steps)
        require(name, at_least=1, starts=starts)
        require(name, above=0, lr=lr)
        require(name, above=0, at_most=1, share=share)
        self.begin = begin
        self.steps = steps
        self.lr = lr
        self.starts = starts
        self.best = best
        self.share = share

    def prepare(self) -> None:  # noqa: B027  (optional)
        """Drops what an earlier fit learned, before the first step; keeps a checkpoint's state."""

    def conditioning(self, batch: NoisyBatch, step: int, models: AdversaryModels) -> Conditioning:
        """Conditioning of a batch's concept prompts, plain or adversarial, ``(B, L, D)``.

        Gradients reach the student's text encoders, but no result of the search.

        Args:
            batch: Noisy latents and sentences of the loss.
            step: Number of the training step.
            models: The models that are searched.
        """
        if not self.is_active(step):
            return models.student.encode(batch.prompts)
        return self.encode(batch.sentences, self.search(batch, models), models.student)

    def is_active(self, step: int) -> bool:
        """Whether a training step is adversarial; the same on all ranks."""
        number = step - self.begin
        due = int((number + 1) * self.share) > int(number * self.share)
        return self.steps > 0 and number >= 0 and due

    @abstractmethod
    def start(self, sentences: PromptBatch, models: AdversaryModels, number: int) -> Point:
        """Where a search begins; random draws are from torch's global generator.

        Args:
            sentences: Sentences of the loss.
            models: The models that are searched.
            number: Index of the search, from 0.
        """

    @abstractmethod
    def encode(self, sentences: PromptBatch, point: Point, student: Backbone) -> Conditioning:
        """The student's conditioning of sentences at a point, with gradient to both."""

    def optimizer(self, point: Point) -> Optimizer:
        """The optimizer of a search; Adam by default."""
        return Adam(point, lr=self.lr)

    def direction(self, gradient: Tensor) -> Tensor:
        """The gradient that the optimizer receives; by default as it is."""
        return gradient

    def project(self, point: Point) -> None:  # noqa: B027  (optional)
        """Moves a point, in place, to the nearest that is allowed; all are by default."""

    def by_row(self, values: Tensor, sentences: PromptBatch) -> Tensor:
        """Values of latents ``(B,)`` as values of the point's rows ``(P,)``; by default the same.

        Args:
            values: One of each latent.
            sentences: Sentences of the latents.
        """
        return values

    def search(self, batch: NoisyBatch, models: AdversaryModels) -> Point:
        """The result of all searches, without gradient.

        Args:
            batch: Noisy latents and sentences of the loss, at which points are compared.
            models: The models that are searched.
        """
        best = BestPoint()
        compared = self.best or self.starts > 1
        for number in range(self.starts):
            point = self.start(batch.sentences, models, number)
            for value in point:
                value.requires_grad_(True)
            optimizer = self.optimizer(point)
            for _ in range(self.steps):
                self.search_step(optimizer, point, batch, models, best)
            if compared:
                best.offer(point, self.errors(batch, point, models))
        return best.point if compared else [value.detach() for value in point]

    @torch.no_grad()
    def errors(self, batch: NoisyBatch, point: Point, models: AdversaryModels) -> Tensor:
        """Mean squared distance to the original's predictions for the concept, by row, ``(P,)``."""
        conditioning = self.encode(batch.sentences, point, models.student)
        errors = _mean_square(models.predict(batch, conditioning) - batch.teacher.concept)
        return self.by_row(errors, batch.sentences)

    def search_step(
        self,
        optimizer: Optimizer,
        point: Point,
        batch: NoisyBatch,
        models: AdversaryModels,
        best: "BestPoint",
    ) -> None:
        """Takes a step of a search, in rows where the error is more than rounding.

        Args:
            optimizer: That of the search.
            point: The point, which is changed in place.
            batch: Noisy latents and sentences of the loss.
            models: The models that are searched.
            best: The best point so far, with which the point is compared before the step.
        """
        if self.best:
            best.offer(point, self.errors(batch, point, models))
        if self.fresh:
            batch = models.draw(batch.sentences)
        conditioning = self.encode(batch.sentences, point, models.student)
        prediction = models.predict(batch, conditioning)
        target = batch.teacher.concept
        gradients = torch.autograd.grad(models.error(prediction, target, batch.t), point)
        with torch.no_grad():
            epsilon = torch.finfo(models.student.base_dtype).eps
            rounding = _ROUNDING * epsilon * _mean_square(target)
            excess = (_mean_square(prediction - target) - rounding).clamp(min=0)
            moves = self.by_row(excess, batch.sentences) > 0
            before = [value.clone() for value in point]
            for value, gradient in zip(point, gradients, strict=True):
                value.grad = self.direction(gradient)
            optimizer.step()
            self.project(point)
            for value, old in zip(point, before, strict=True):
                value.copy_(_choose(moves, value, old))

    def state_dict(self) -> dict[str, Any]:
        """What persists between training steps, from which a resumed run continues."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027  (optional)
        """Restores the state of `state_dict`."""


class BestPoint:
    """The best point so far of each row."""

    def __init__(self) -> None:
        self.point: Point = []
        self._errors = torch.empty(0)

    @torch.no_grad()
    def offer(self, point: Point, errors: Tensor) -> None:
        """Takes the rows of a point whose errors ``(P,)`` are lower."""
        if not self.point:
            self.point = [value.detach().clone() for value in point]
            self._errors = errors
            return
        lower = errors < self._errors
        self._errors = torch.where(lower, errors, self._errors)
        self.point = [
            _choose(lower, value, best) for value, best in zip(point, self.point, strict=True)
        ]


def _choose(rows: Tensor, value: Tensor, other: Tensor) -> Tensor:
    """Rows of ``value`` where ``rows`` ``(P,)`` is true, of ``other`` elsewhere."""
    return torch.where(rows.view(-1, *[1] * (value.dim() - 1)), value, other)


def _mean_square(values: Tensor) -> Tensor:
    """Mean square of each row, ``(B,)``."""
    return values.detach().square().flatten(1).mean(dim=1)
