"""AGE: adaptive guided erasure (Bui et al., arXiv 2501.18950).

Fantastic Targets for Concept Erasure; official code tuananhbui89/Adaptive-Guided-Erasure @ b56a903
(read). The target of a concept is no anchor but a mixture ``c_t`` of words near it, a Gumbel
softmax of logits ``pi``, learned against the edit: steps on the weights lower an objective, steps
on ``pi`` raise one. Verified in code, with ``X(z, c)`` the clean latents that a prediction implies
and ``drift = |X(z_t, c_t) - X*(z_t, c_t)|^2``:

    ``min_theta |X(z_e, c_e) - (X*(z_e, c_t) - eta (X*(z_e, c_e) - X*(z_e, c_t)))|^2``
    ``          + lambda drift``
    ``max_pi    |X(z_e, c_e) - X*(z_e, c_t)|^2 + lambda drift``

The official code computes the first term of the maximum, and the original's side of the drift,
without gradient: its ``pi`` has the gradient of the student's ``X(z_t, c_t)`` alone. So has ours;
``ascent: full`` takes the gradient of the whole objective. Its numbers for SD 1.4 are the defaults:
1e-5 (constant), mixture 1e-3, 100 centres of the 1000 nearest of 3000 English words; 1000 steps, on
trajectories of the student (``student: true``).

Where ours differs: its centres come from k-means over the words' distances to the concept, a list
of numbers; ours are the words at equal ranks of distance. Erased words and their domains are never
targets, there they may be. There ``z_t`` is a rollout of the mixture; a mixture changes with every
step, so ours is noise on an empty image. Every step here is one on the mixture and one on the
weights, at the same latents; there they alternate.

Cost of a step: 2 forwards and backwards of the student and 2 forwards of the original for the
weights (its prediction for the concept is the bank's); a forward and backward of the student and a
forward of the original for the mixture (``full``: 2 forwards and a backward of the student, 2
forwards and backwards of the original).
"""

from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import mse_loss, one_hot

from erasure_lightning.backbones.conditioning import Conditioning
from erasure_lightning.backbones.interface import Part
from erasure_lightning.concepts.prompt_lists import (
    is_shipped_list,
    read_prompt_list,
    without_concepts,
)
from erasure_lightning.concepts.vocabulary import Vocabulary, evenly_spaced
from erasure_lightning.errors import ErasureError
from erasure_lightning.training.adapter_methods import PartErasure
from erasure_lightning.training.latent_sources import NoisyBatch, pure_noise


class AGE(PartErasure):
    """Adaptive guided erasure: erases to a learned mixture of words that the edit affects most.

    Anchors are not used.

    Args:
        train: Which part of the denoiser, as in ESD.
        eta: How far past the target, away from the concept; at least 0.
        preserve: Weight ``lambda`` of the drift at the targets themselves; at least 0.
        vocabulary: A text file of candidate words, one a line, or the name of a shipped list
            (``artists``), without the concepts; by default the world's labels.
        closest: Number of nearest words that may be targets of a concept; at least 1. Officially
            1000 of 3000 English words; of a shorter list all.
        centres: Number of those, at equal ranks, that are targets; at least 1.
        temperature: Of the Gumbel softmax, above 0.
        top: Words in a mixture; at least 1, and at 1 a single word.
        target_lr: Learning rate of the mixture's Adam; at 0 it is not learned.
        ascent: What the mixture's gradient passes through: the ``student``'s prediction in the
            drift alone (official), or the ``full`` objective.
        lr: Highest learning rate of the weights.
        loss_space: The clean latents, in which AGE is defined.
        kwargs: Arguments of every gradient method, and of `PartErasure` (``rank`` for adapters).

    Raises:
        ErasureError: If a number is out of range.
    """

    def __init__(
        self,
        *,
        train: Part = "x",
        eta: float = 1.0,
        preserve: float = 1.0,
        vocabulary: str | None = None,
        closest: int = 1000,
        centres: int = 100,
        temperature: float = 2.0,
        top: int = 5,
        target_lr: float = 1e-3,
        ascent: Literal["student", "full"] = "student",
        lr: float = 1e-5,
        loss_space: Literal["sample"] = "sample",
        **kwargs: Any,
    ) -> None:
        super().__init__(train=train, lr=lr, loss_space=loss_space, **kwargs)
        if min(closest, centres, top) < 1 or min(eta, preserve, target_lr) < 0 or temperature <= 0:
            raise ErasureError(
                "AGE needs counts of at least 1, weights of at least 0, and a temperature above 0."
            )
        self.eta = eta
        self.preserve = preserve
        self.vocabulary = vocabulary
        self.closest = closest
        self.centres = centres
        self.temperature = temperature
        self.top = top
        self.target_lr = target_lr
        self.ascent = ascent
        #: State of the mixtures in a checkpoint, until training starts.
        self._restored: dict[str, Any] = {}

    @torch.no_grad()
    def on_train_start(self) -> None:
        """Encodes the vocabulary, selects each concept's targets, and restores the mixtures."""
        if self.vocabulary:
            words = read_prompt_list(self.vocabulary, "AGE")
            if is_shipped_list(self.vocabulary):
                words = without_concepts(words, self.concepts)
        else:
            words = Vocabulary(self.backbone.world, self.concepts).others
        super().on_train_start()
        self._table = Conditioning.cat(
            [self.original.encode(words[i : i + 64]) for i in range(0, len(words), 64)]
        )
        self._targets = torch.stack([self._targets_of(concept.name) for concept in self.concepts])
        count = self._targets.shape[1]
        self._logits = torch.full(
            (len(self.concepts), count), 1 / count, device=self.device, requires_grad=True
        )
        self._mixture_optimizer = torch.optim.Adam([self._logits], lr=self.target_lr, maximize=True)
        if self._restored:
            self._logits.copy_(self._restored["logits"])
            self._mixture_optimizer.load_state_dict(self._restored["ascent"])

    def _targets_of(self, concept: str) -> Tensor:
        """Numbers of the words that are targets of a concept, nearest first."""
        state = self.original.encode([concept]).tokens
        table = self._table.tokens
        ranked = (table - state).flatten(1).float().norm(dim=1).argsort()[: self.closest].tolist()
        return torch.tensor(evenly_spaced(ranked, self.centres), device=table.device)

    def mixture(self, batch: NoisyBatch) -> Conditioning:
        """``c_t``: a sample of each concept's mixture, with gradient, tokens ``(B, L, D)``."""
        rows = torch.tensor(batch.indices)
        count = self._logits.shape[1]
        gumbel = -torch.empty(len(rows), count).exponential_().log().to(self._logits)
        weights = ((self._logits[rows] + gumbel) / self.temperature).softmax(dim=1)
        top = one_hot(weights.topk(min(self.top, count)).indices, count).sum(dim=1)
        weights = weights * top / (weights * top).sum(dim=1, keepdim=True)
        words = self._table[self._targets[rows]]

        def mixed(states: Tensor) -> Tensor:
            return torch.einsum("bn,bn...->b...", weights.to(states), states)

        pooled = None if words.pooled is None else mixed(words.pooled)
        return replace(words[:, 0], tokens=mixed(words.tokens), pooled=pooled)

    def erasure_loss(self, batch: NoisyBatch) -> Tensor:
        """A step of the mixture, then the loss of the weights at a new sample of it, a scalar."""
        x = batch.x
        t = batch.t
        noise, times = pure_noise(self.backbone, len(batch))
        if self.target_lr:
            objective = self.mixture_objective(batch, noise, times, self.mixture(batch))
            (self._logits.grad,) = torch.autograd.grad(objective, self._logits)
            self._mixture_optimizer.step()
        with torch.no_grad():
            mixture = self.mixture(batch)
            mixed = self._clean(self.original.denoise(x, t, mixture), x, t)
        concept = self._clean(batch.teacher.concept, x, t)
        student = self._clean(self.student(batch), x, t)
        loss = mse_loss(student, mixed - self.eta * (concept - mixed))
        return loss + self.preserve * self._drift(noise, times, mixture)

    def mixture_objective(
        self, batch: NoisyBatch, noise: Tensor, times: Tensor, mixture: Conditioning
    ) -> Tensor:
        """``|X(z_e, c_e) - X*(z_e, c_t)|^2 + lambda drift``, which the mixture maximises, a scalar.

        With ``ascent="student"`` without the first term, which has no gradient there.

        Args:
            batch: ``z_e``, and the sentences of ``c_e``.
            noise: ``z_t``, ``(B, C, h, w)``.
            times: Times of ``z_t``, ``(B,)``.
            mixture: ``c_t``.
        """
        if self.ascent == "student":
            with torch.no_grad():
                target = self._clean(self.original.denoise(noise, times, mixture), noise, times)
            student = self._clean(self.backbone.denoise(noise, times, mixture), noise, times)
            return self.preserve * mse_loss(student, target)
        x = batch.x
        t = batch.t
        with torch.no_grad():
            plain = self.backbone.encode(batch.prompts)
            student = self._clean(self.student(batch, plain), x, t)
        mixed = self._clean(self.original.denoise(x, t, mixture), x, t)
        return mse_loss(student, mixed) + self.preserve * self._drift(noise, times, mixture)

    def _drift(self, x: Tensor, t: Tensor, mixture: Conditioning) -> Tensor:
        """``|X(z_t, c_t) - X*(z_t, c_t)|^2``, a scalar."""
        student = self._clean(self.backbone.denoise(x, t, mixture), x, t)
        original = self._clean(self.original.denoise(x, t, mixture), x, t)
        return mse_loss(student, original)

    def _clean(self, prediction: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """``X``: the clean latents that a prediction implies, ``(B, C, h, w)``."""
        return self.backbone.process.clean(prediction, x, t)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Saves the mixtures too."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["mixture"] = {
            "logits": self._logits.detach(),
            "ascent": self._mixture_optimizer.state_dict(),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restores the mixtures when training starts."""
        super().on_load_checkpoint(checkpoint)
        self._restored = checkpoint.get("mixture", {})
