"""EAP: negative guidance, beside preservation of the words that the edit harms most.

Bui et al., Erasing Undesirable Concepts in Diffusion Models with Adversarial Preservation (NeurIPS
2024), arXiv 2410.15618. Official code tuananhbui89/Erasing-Adversarial-Preservation @ 7222925,
`train_adversarial_gumbel.py`, verified in code. With ``X(z, c)`` the clean latents that a
prediction implies, ``X*`` the original's, and ``c_r`` a word near the concept, a sample of a
straight-through Gumbel softmax of logits ``pi``, steps on the weights and on ``pi`` alternate:

    ``min_theta |X(z_e, c_e) - (X*(z_e, 0) - eta (X*(z_e, c_e) - X*(z_e, 0)))|^2 + lambda drift``
    ``max_pi    drift = |X(z_r, c_r) - X*(z_r, c_r)|^2``

The first term is ESD's, in clean latents. The original's side of the drift has no gradient: ``pi``
has that of the student's ``X(z_r, c_r)``. The candidates are 100 centres of the 1000 nearest of
3000 English words; ``lambda`` is 1. AGE, of the same authors, erases to such words too.

Where the official code has a bug and ours differs: its latents are 39 to 58 (of 1000) times cleaner
than their time, as in ESD of 2023, whose loop it is.

Where ours differs: the official centres come from k-means over the words' distances to the concept,
a list of numbers; ours are the words at equal ranks of distance. Erased words and their domains are
never preserved; in the official code they may be. Its ``z_r`` is a rollout of the word; as the word
changes with every step, ours is noise on an empty image. Every step here is one on the words and
one on the weights, at the same latents and with a sample each; its steps on words and weights
alternate, each with latents of its own.

Its numbers for SD 1.4 are the defaults: Adam 1e-5 (constant), ``pi`` Adam 1e-2, temperature 2,
``eta`` 1, cross-attention for styles and things (all but that, 50 centres of 2000 words for
nudity), 1000 steps, on trajectories of the student (``student: true``).

Cost of a step on a bank: 2 forwards and backwards and a forward of the original for the weights; a
forward and backward and a forward of the original for the words.
"""

from typing import Any

import torch
from torch import Tensor

from erasure_lightning.backbones.conditioning import Conditioning
from erasure_lightning.backbones.interface import Part
from erasure_lightning.backbones.process import LossSpace
from erasure_lightning.checks import require
from erasure_lightning.training.latent_sources import NoisyBatch, pure_noise
from erasure_lightning.training.word_mixtures import WordMixtureErasure


class EAP(WordMixtureErasure):
    """Erasing with adversarial preservation: ESD, retaining the words that it affects most.

    Anchors are not used.

    Args:
        train: Which part of the denoiser, as in ESD.
        eta: Negative guidance, as in ESD; at least 0.
        preserve_scale: Weight ``lambda`` of the drift at the adversarial words, at least 0.
        adversary_lr: Learning rate of the words' Adam; at 0 they are random.
        lr: Highest learning rate of the weights.
        loss_space: The clean latents, in which EAP is defined; or another.
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
        adversary_lr: float = 1e-2,
        lr: float = 1e-5,
        loss_space: LossSpace = "sample",
        **kwargs: Any,
    ) -> None:
        super().__init__(train=train, lr=lr, loss_space=loss_space, **kwargs)
        require(
            "EAP", at_least=0, eta=eta, preserve_scale=preserve_scale, adversary_lr=adversary_lr
        )
        self.eta = eta
        self.preserve_scale = preserve_scale
        self.adversary_lr = adversary_lr

    def mixture_settings(self) -> dict[str, Any]:
        """Single words, with the gradient of all."""
        return {"lr": self.adversary_lr}

    def erasure_loss(self, batch: NoisyBatch) -> Tensor:
        """A step of the adversary, then the loss of the weights at words it samples, a scalar."""
        teacher = batch.teacher
        target = teacher.unconditional - self.eta * (teacher.concept - teacher.unconditional)
        loss = self.prediction_error(self.student(batch), target, batch.t)
        if not self.preserve_scale:
            return loss
        x, t = pure_noise(self.backbone, len(batch))
        if self.adversary_lr:
            self.words.ascend(self.drift(x, t, self.mixture(batch)))
        with torch.no_grad():
            words = self.mixture(batch)
        return loss + self.preserve_scale * self.drift(x, t, words)

    def drift(self, x: Tensor, t: Tensor, words: Conditioning) -> Tensor:
        """``|X(z_r, c_r) - X*(z_r, c_r)|^2``, a scalar.

        Args:
            x: ``z_r``, ``(B, C, h, w)``.
            t: Their times, ``(B,)``.
            words: ``c_r``, whose gradient is that of the student's side.
        """
        with torch.no_grad():
            target = self.original.denoise(x, t, words)
        return self.prediction_error(self.backbone.denoise(x, t, words), target, t)
