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
``ascent: full`` takes the gradient of the whole objective. Its arguments' defaults for SD 1.4 are
ours: 1e-5 (constant), mixture 1e-3, temperature 2, 100 centres of the 1000 nearest of 3000 English
words; 1000 steps, on trajectories of the student (``student: true``). Its scripts for things and
nudity have a single word with the gradient of all weights (``gumbel_hard 1``, here ``top: 1``) of
the 100 nearest, and mixture 1e-2; those for things a temperature of 0.1.

Where ours differs: its centres come from k-means over the words' distances to the concept, a list
of numbers; ours are the words at equal ranks of distance. Erased words and their domains are never
targets, there they may be. There ``z_t`` is a rollout of the mixture; a mixture changes with every
step, so ours is noise on an empty image. Its latents are 39 to 58 (of 1000) times cleaner than
their time, as in ESD of 2023, whose loop it is. Every step here is one on the mixture and one on
the weights, at the same latents; there they alternate.

Cost of a step: 2 forwards and backwards of the student and 2 forwards of the original for the
weights (its prediction for the concept is the bank's); a forward and backward of the student and a
forward of the original for the mixture (``full``: 2 forwards and a backward of the student, 2
forwards and backwards of the original).
"""

from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from erasure_lightning.backbones.conditioning import Conditioning
from erasure_lightning.backbones.interface import Part
from erasure_lightning.checks import require
from erasure_lightning.training.latent_sources import NoisyBatch, pure_noise
from erasure_lightning.training.word_mixtures import WordMixtureErasure


class AGE(WordMixtureErasure):
    """Adaptive guided erasure: erases to a learned mixture of words that the edit affects most.

    Anchors are not used.

    Args:
        train: Which part of the denoiser, as in ESD.
        eta: How far past the target, away from the concept; at least 0.
        preserve_scale: Weight ``lambda`` of the drift at the targets themselves; at least 0.
        top: Words in a mixture; at least 1, and at 1 a single word, straight-through.
        target_lr: Learning rate of the mixture's Adam; at 0 it is not learned.
        ascent: What the mixture's gradient passes through: the ``student``'s prediction in the
            drift alone (official), or the ``full`` objective.
        lr: Highest learning rate of the weights.
        loss_space: The clean latents, in which AGE is defined.
        kwargs: Arguments of `GradientErasure`, of `PartErasure` (``rank`` for adapters), and of
            `WordMixtureErasure` (``vocabulary``, ``closest``, ``centres``, ``temperature``).

    Raises:
        ErasureError: If a number is out of range.
    """

    def __init__(
        self,
        *,
        train: Part = "x",
        eta: float = 1.0,
        preserve_scale: float = 1.0,
        top: int = 5,
        target_lr: float = 1e-3,
        ascent: Literal["student", "full"] = "student",
        lr: float = 1e-5,
        loss_space: Literal["sample"] = "sample",
        **kwargs: Any,
    ) -> None:
        super().__init__(train=train, lr=lr, loss_space=loss_space, **kwargs)
        require("AGE", at_least=1, top=top)
        require("AGE", at_least=0, eta=eta, preserve_scale=preserve_scale, target_lr=target_lr)
        self.eta = eta
        self.preserve_scale = preserve_scale
        self.top = top
        self.target_lr = target_lr
        self.ascent = ascent

    def mixture_settings(self) -> dict[str, Any]:
        """Mixtures of the ``top`` words; a single word with the gradient of all their weights."""
        # The weight of one word, rescaled to 1, has no gradient.
        return {"lr": self.target_lr, "top": self.top if self.top > 1 else None}

    def erasure_loss(self, batch: NoisyBatch) -> Tensor:
        """A step of the mixture, then the loss of the weights at a new sample of it, a scalar."""
        x = batch.x
        t = batch.t
        noise, times = pure_noise(self.backbone, len(batch))
        if self.target_lr:
            self.words.ascend(self.mixture_objective(batch, noise, times, self.mixture(batch)))
        with torch.no_grad():
            mixture = self.mixture(batch)
            mixed = self._clean(self.original.denoise(x, t, mixture), x, t)
        concept = self._clean(batch.teacher.concept, x, t)
        student = self._clean(self.student(batch), x, t)
        loss = mse_loss(student, mixed - self.eta * (concept - mixed))
        return loss + self.preserve_scale * self._drift(noise, times, mixture)

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
            return self.preserve_scale * mse_loss(student, target)
        x = batch.x
        t = batch.t
        with torch.no_grad():
            plain = self.backbone.encode(batch.prompts)
            student = self._clean(self.student(batch, plain), x, t)
        mixed = self._clean(self.original.denoise(x, t, mixture), x, t)
        return mse_loss(student, mixed) + self.preserve_scale * self._drift(noise, times, mixture)

    def _drift(self, x: Tensor, t: Tensor, mixture: Conditioning) -> Tensor:
        """``|X(z_t, c_t) - X*(z_t, c_t)|^2``, a scalar."""
        student = self._clean(self.backbone.denoise(x, t, mixture), x, t)
        original = self._clean(self.original.denoise(x, t, mixture), x, t)
        return mse_loss(student, original)

    def _clean(self, prediction: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """``X``: the clean latents that a prediction implies, ``(B, C, h, w)``."""
        return self.backbone.process.clean(prediction, x, t)
