"""All but One: surgical concept erasing (Hong, Lee and Woo, AAAI 2024, arXiv 2312.12807).

A prediction is an unconditional part and a guidance term, ``eps(c) = eps(0) + D(c)``. Erasing
replaces the concept's term by that of an alternative, and retains the unconditional part, which is
in *every* guided image:

    ``L = |D_th - D_tgt|^2 + lam |eps_th(0) - eps_*(0)|^2``,  ``D_th = eps_th(c_e) - eps_th(0)``,

with ``D_tgt = D_*(c_a)``. Where both terms are 0, the edited model generates for the concept what
the original generates for the alternative: the same image for the same seed, at any guidance.

No code was published. Stated by the paper: the surgical update of the guidance term, the constraint
on the unconditional drift, the alternative, and purification (``erasure purify``). Reconstructed:
the exact loss, ``lam``, which predictions have gradient, which weights are trained, at which
latents, and every number. The more general
``D_tgt = a D_*(c_a) - eta D_*(c_e)`` is ours; at ``(0, 1)``, detached and without drift term its
gradient is ESD's as long as the unconditional prediction is the original's, thus at the first step:
afterwards the target ``eps_th(0) - eta D_*(c_e)`` changes with the student.

Predictions are compared in the model's own parametrisation, or in that of ``loss_space``. In a
velocity model of a diffusion both differences are those of the noise divided by the signal's scale
``a_t``: the optimum and the meaning of ``lam`` are the same. Compared as noise, such a model's
errors weigh ``a_t^2``, which is close to 0 at the noisy steps where guidance decides an image's
layout.

Cost per step: two evaluations of the student a latent, in one batch, with one backward; the frozen
original predicts once at each step of the bank.
"""

from typing import Any

import torch
from torch import Tensor

from erasure_lightning.backbones.conditioning import Conditioning
from erasure_lightning.backbones.interface import Part
from erasure_lightning.checks import require
from erasure_lightning.training.adapter_methods import PartErasure
from erasure_lightning.training.latent_sources import NoisyBatch, Teacher


class AllButOne(PartErasure):
    """Moves the guidance term to an alternative, and retains the unconditional prediction.

    A concept's anchor is its alternative; without one the target of the guidance term is 0.

    Args:
        train: Which part of the denoiser: ``x`` its cross-attention, ``x-strict`` keys and values
            alone, ``u`` all but cross-attention (peers, for what appears unnamed), ``all``.
        lam: Weight of the unconditional drift, at least 0; 0 for the ablation without the term.
        alternative: ``a``, scale of the alternative's guidance in the target.
        eta: ``eta``, negative scale of the concept's own guidance in the target, at least 0.
        detach_unconditional: Let the guidance term train the conditional prediction alone.
        lr: Highest learning rate; ESD's of 2023, as peers train SD 1.x with it for 200 to 1500
            steps.
        kwargs: Arguments of `GradientErasure`, and of `PartErasure` (``rank`` for adapters).

    Raises:
        ErasureError: If ``lam`` or ``eta`` is negative.
    """

    default_steps = 500

    def __init__(
        self,
        *,
        train: Part = "x",
        lam: float = 1.0,
        alternative: float = 1.0,
        eta: float = 0.0,
        detach_unconditional: bool = False,
        lr: float = 1e-5,
        **kwargs: Any,
    ) -> None:
        super().__init__(train=train, lr=lr, **kwargs)
        require("AllButOne", at_least=0, lam=lam, eta=eta)
        self.lam = lam
        self.alternative = alternative
        self.eta = eta
        self.detach_unconditional = detach_unconditional

    def erasure_loss(self, batch: NoisyBatch) -> Tensor:
        """``|D_th - D_tgt|^2 + lam |eps_th(0) - eps_*(0)|^2``, both of one forward."""
        unconditional, conditional = self.predictions(batch)
        subtracted = unconditional.detach() if self.detach_unconditional else unconditional
        guidance = conditional - subtracted
        surgical_loss = self.prediction_error(guidance, self.target(batch.teacher), batch.t)
        if not self.lam:
            return surgical_loss
        drift = self.prediction_error(unconditional, batch.teacher.unconditional, batch.t)
        return surgical_loss + self.lam * drift

    def predictions(self, batch: NoisyBatch) -> tuple[Tensor, Tensor]:
        """``eps_th(0)`` and ``eps_th(c_e)`` of the student, ``(B, C, h, w)`` both."""
        prompts = self.concept_conditioning(batch)
        both = Conditioning.cat([self.backbone.unconditional(len(batch)), prompts])
        x = torch.cat((batch.x, batch.x))
        t = torch.cat((batch.t, batch.t))
        unconditional, conditional = self.backbone.denoise(x, t, both).chunk(2)
        return unconditional, conditional

    def target(self, teacher: Teacher) -> Tensor:
        """``D_tgt = a D_*(c_a) - eta D_*(c_e)``, ``(B, C, h, w)``, without terms of weight 0."""
        target = torch.zeros_like(teacher.x)
        if self.alternative and self.original.any_rank(any(teacher.sentences.anchors)):
            target = self.alternative * (teacher.anchor - teacher.unconditional)
        if self.eta:
            target = target - self.eta * (teacher.concept - teacher.unconditional)
        return target
