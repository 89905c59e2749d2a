"""AGE: adaptive guided erasure (Bui et al., Fantastic Targets for Concept Erasure, arXiv
2501.18950).

Official code tuananhbui89/Adaptive-Guided-Erasure @ b56a903 (read). What stands in the concept's
place is no anchor but a mixture ``c_t`` of words near it, a Gumbel softmax of ``pi``, learned
against the edit: steps on the weights lower, steps on ``pi`` raise. Verified in code, with ``X(z,
c)`` the clean latents that a prediction stands for:

    ``min_theta |X(z_e, c_e) - (X*(z_e, c_t) - eta (X*(z_e, c_e) - X*(z_e, c_t)))|^2 + lambda
    drift`` ``max_pi    |X(z_e, c_e) - X*(z_e, c_t)|^2 + lambda drift``, with ``drift = |X(z_t, c_t)
    - X*(z_t, c_t)|^2``

The official code computes the first term of the maximum, and the original's side of the drift,
without gradient: its ``pi`` moves by the student's ``X(z_t, c_t)`` alone. So does ours; ``ascent:
full`` takes the gradient of what is written. Its numbers for SD 1.4 are the defaults: 1e-5
(constant), mixture 1e-3, 100 centres of the 1000 nearest of 3000 English words; 1000 steps, on
trajectories of the student (``student: true``).

Where ours differs. Its centres come from k-means over the words' distances to the concept, a list
of numbers; ours are the words at equal ranks of distance. Erased words and their domains are no
targets, there they may be. ``z_t`` is walked from the mixture there; a mixture changes with every
step, so ours is noise of no picture. Every step here is one on the mixture and one on the weights,
at the same latents; there they take turns.

Cost of a step: 2 forwards and backwards of the student and 2 forwards of the original for the
weights (its answer to the concept is the bank's); a forward and backward of the student and a
forward of the original for the mixture (``full``: 2 forwards and a backward of the student, 2
forwards and backwards of the original).
"""

from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss, one_hot

from erasure_lightning.backbones.conditioning import Conditioning
from erasure_lightning.backbones.interface import Part
from erasure_lightning.concepts.vocabulary import Vocabulary, evenly_spaced
from erasure_lightning.errors import ErasureError
from erasure_lightning.files.text_files import read_prompts_file
from erasure_lightning.training.gradient import GradientErasure
from erasure_lightning.training.latent_sources import NoisyBatch, pure_noise


class AGE(GradientErasure):
    """Adaptive guided erasure: sends the concept to words near it, chosen where the edit hurts
    most.

    Anchors are not read: the targets are found.

    Args:
        train: Which part of the denoiser, as ESD says it.
        eta: How far past the target, away from the concept; at least 0.
        preserve: Weight ``lambda`` of what the targets themselves must keep; at least 0.
        vocabulary: A text file of words, one a line, to choose targets from; by default what the
            world draws.
        closest: How many of them, the nearest, may be targets of a concept; at least 1. Officially
            1000 of 3000 English words; of a shorter list all.
        centres: How many of those, at equal ranks, are; at least 1.
        temperature: Of the Gumbel softmax, above 0.
        top: Words in a mixture; at least 1, and at 1 a single word.
        target_lr: Adam's rate for the mixture; at 0 it is never learned.
        ascent: What the mixture's gradient passes: the ``student``'s prediction in the drift alone
            (official), or (``full``) all of what it maximises.
        lr: Highest learning rate of the weights.
        kwargs: Arguments of every gradient method.

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
        **kwargs: Any,
    ) -> None:
        super().__init__(lr=lr, **kwargs)
        if min(closest, centres, top) < 1 or min(eta, preserve, target_lr) < 0 or temperature <= 0:
            raise ErasureError(
                "AGE needs counts of at least 1, weights of at least 0, and a temperature above 0."
            )
        self.train_part, self.eta, self.preserve, self.vocabulary = train, eta, preserve, vocabulary
        self.closest, self.centres, self.top = closest, centres, top
        self.temperature, self.target_lr, self.ascent = temperature, target_lr, ascent
        self._learned: dict[str, Any] = {}

    def editable(self) -> dict[str, nn.Parameter]:
        """The part of the denoiser that ``train`` names."""
        return self.backbone.denoiser_parameters(self.train_part)

    @torch.no_grad()
    def on_train_start(self) -> None:
        """Encode the vocabulary, find each concept's targets, and take up the mixtures where a
        checkpoint left them.
        """
        others = Vocabulary(self.backbone.world, self.concepts).others
        words = read_prompts_file(self.vocabulary, "AGE") if self.vocabulary else others
        super().on_train_start()
        self._table = Conditioning.cat(
            [self.original.encode(words[i : i + 64]) for i in range(0, len(words), 64)]
        )
        self._targets = torch.stack([self._near(concept.name) for concept in self.concepts])
        count = self._targets.shape[1]
        self._logits = torch.full(
            (len(self.concepts), count), 1 / count, device=self.device, requires_grad=True
        )
        self._ascent = torch.optim.Adam([self._logits], lr=self.target_lr, maximize=True)
        if self._learned:
            self._logits.copy_(self._learned["logits"])
            self._ascent.load_state_dict(self._learned["ascent"])

    def _near(self, concept: str) -> Tensor:
        """Numbers of the words that may stand in the concept's place, nearest first."""
        state, table = self.original.encode([concept]).tokens, self._table.tokens
        ranked = (table - state).flatten(1).float().norm(dim=1).argsort()[: self.closest].tolist()
        return torch.tensor(evenly_spaced(ranked, self.centres), device=table.device)

    def mixture(self, batch: NoisyBatch) -> Conditioning:
        """``c_t`` ``(B, L, D)``: a draw of each concept's mixture; the gradient flows to its
        logits.
        """
        rows = torch.tensor(batch.indices)
        gumbel = (
            -torch.empty(len(rows), self._logits.shape[1]).exponential_().log().to(self._logits)
        )
        shares = ((self._logits[rows] + gumbel) / self.temperature).softmax(dim=1)
        kept = one_hot(shares.topk(min(self.top, shares.shape[1])).indices, shares.shape[1]).sum(
            dim=1
        )
        shares = shares * kept / (shares * kept).sum(dim=1, keepdim=True)
        words = self._table[self._targets[rows]]

        def mixed(states: Tensor) -> Tensor:
            return torch.einsum("bn,bn...->b...", shares.to(states), states)

        pooled = None if words.pooled is None else mixed(words.pooled)
        return replace(words[:, 0], tokens=mixed(words.tokens), pooled=pooled)

    def erasure_loss(self, batch: NoisyBatch) -> Tensor:
        """A step of the mixture uphill, then the loss of the weights at a fresh draw of it."""
        x, t = batch.x, batch.t
        free, times = pure_noise(self.backbone, len(batch))
        if self.target_lr:
            slope = torch.autograd.grad(
                self.harm(batch, free, times, self.mixture(batch)), self._logits
            )
            self._logits.grad = slope[0]
            self._ascent.step()
        with torch.no_grad():
            target = self.mixture(batch)
            mixed = self._clean(self.original.denoise(x, t, target), x, t)
        concept = self._clean(batch.teacher.concept, x, t)
        now = self._clean(self.student(batch), x, t)
        return mse_loss(now, mixed - self.eta * (concept - mixed)) + self.preserve * self._drift(
            free, times, target
        )

    def harm(self, batch: NoisyBatch, free: Tensor, times: Tensor, target: Conditioning) -> Tensor:
        """What the mixture raises: how far the concept is from it, and how far the edit has moved
        it; a scalar.

        Without the first, which has no gradient, where the ascent is the ``student``'s.
        """
        if self.ascent == "student":
            with torch.no_grad():
                before = self._clean(self.original.denoise(free, times, target), free, times)
            now = self._clean(self.backbone.denoise(free, times, target), free, times)
            return self.preserve * mse_loss(now, before)
        x, t = batch.x, batch.t
        with torch.no_grad():
            now = self._clean(self.student(batch), x, t)
        mixed = self._clean(self.original.denoise(x, t, target), x, t)
        return mse_loss(now, mixed) + self.preserve * self._drift(free, times, target)

    def _drift(self, x: Tensor, t: Tensor, target: Conditioning) -> Tensor:
        now, before = (
            self._clean(model.denoise(x, t, target), x, t)
            for model in (self.backbone, self.original)
        )
        return mse_loss(now, before)

    def _clean(self, prediction: Tensor, x: Tensor, t: Tensor) -> Tensor:
        return self.backbone.process.clean(prediction, x, t)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the mixtures too."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["mixture"] = {
            "logits": self._logits.detach(),
            "ascent": self._ascent.state_dict(),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take them up where a run goes on."""
        super().on_load_checkpoint(checkpoint)
        self._learned = checkpoint.get("mixture", {})
