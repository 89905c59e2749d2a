"""All but One: surgical concept erasing (Hong, Lee and Woo, AAAI 2024, arXiv 2312.12807; no code
was published).

A prediction is an unconditional part and a guidance term, ``eps(c) = eps(0) + D(c)``. Erasing
exchanges the concept's term alone for that of an alternative; the unconditional part, which
guidance puts into *every* picture, stays:

    ``L = |D_th - D_tgt|^2 + lam |eps_th(0) - eps_*(0)|^2``,  ``D_th = eps_th(c_e) - eps_th(0)``,

with ``D_tgt = D_*(c_a)``. Where both vanish, the concept is drawn as the original draws the
alternative: from the same seed the same picture, at any guidance.

Stated by the paper: the surgical update of the guidance term, the constraint on the unconditional
drift, the alternative, and purification (``erasure purify``). Reconstructed: the exact loss,
``lam``, who carries gradient, what is trained, whose latents, every number. The more general
``D_tgt = a D_*(c_a) - eta D_*(c_e)`` is ours; at ``(0, 1)``, detached and without drift term its
gradient is ESD's while the unconditional prediction is the original's, thus at the first step:
afterwards the target ``eps_th(0) - eta D_*(c_e)`` moves with the student.

Predictions are compared as the model makes them. In a model of velocity both differences are those
of noise over the signal's scale ``a_t``: the optimum and the meaning of ``lam`` are the same.
Compared as noise, such a model's errors would weigh ``a_t^2``, which is next to nothing at the
noisy steps where guidance lays a picture out.

Cost per step: two evaluations of the student a latent, in one batch, with one backward; the frozen
original is asked once at each moment of the bank, and then never again.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from erasure_lightning.backbones.conditioning import Conditioning
from erasure_lightning.backbones.interface import Part
from erasure_lightning.errors import ErasureError
from erasure_lightning.training.gradient import GradientErasure
from erasure_lightning.training.latent_sources import NoisyBatch, Teacher


class AllButOne(GradientErasure):
    """Moves the guidance term to an alternative, and holds the unconditional prediction where it
    was.

    A concept's anchor is its alternative; without one, guidance is left with nothing to say.

    Args:
        train: Which part of the denoiser: ``x`` its cross-attention, ``x-strict`` keys and values
            alone, ``u`` all but cross-attention (peers, for what appears unnamed), ``all``.
        lam: Weight of the unconditional drift, at least 0; 0 for the ablation.
        alternative: ``a``, how much of the alternative's guidance is aimed at.
        eta: How much of the concept's own guidance is aimed away from, at least 0.
        detach_unconditional: Let the guidance term move the conditional prediction alone.
        lr: Highest learning rate; ESD's of 2023, as peers train SD 1.x with it for 200 to 1500
            steps.
        kwargs: Arguments of every gradient method.

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
        super().__init__(lr=lr, **kwargs)
        if lam < 0 or eta < 0:
            raise ErasureError(f"AllButOne needs lam and eta of at least 0; found {lam}, {eta}.")
        self.train_part = train
        self.lam, self.alternative, self.eta = lam, alternative, eta
        self.detach_unconditional = detach_unconditional

    def editable(self) -> dict[str, nn.Parameter]:
        """The part of the denoiser that ``train`` names."""
        return self.backbone.denoiser_parameters(self.train_part)

    def erasure_loss(self, batch: NoisyBatch) -> Tensor:
        """``L_sur + lam L_unc``, both of one forward of the student."""
        unconditional, conditional = self.predictions(batch)
        base = unconditional.detach() if self.detach_unconditional else unconditional
        surgical = mse_loss(conditional - base, self.target(batch.teacher))
        if not self.lam:
            return surgical
        return surgical + self.lam * mse_loss(unconditional, batch.teacher.unconditional)

    def predictions(self, batch: NoisyBatch) -> tuple[Tensor, Tensor]:
        """The student's predictions without a prompt and for the concepts' sentences, ``(B, C, h,
        w)`` each.
        """
        prompts = self.backbone.encode(batch.prompts)
        both = Conditioning.cat([self.backbone.unconditional(len(batch)), prompts])
        x, t = torch.cat((batch.x, batch.x)), torch.cat((batch.t, batch.t))
        unconditional, conditional = self.backbone.denoise(x, t, both).chunk(2)
        return unconditional, conditional

    def target(self, teacher: Teacher) -> Tensor:
        """``D_tgt = a D_*(c_a) - eta D_*(c_e)``, ``(B, C, h, w)``; predictions of weight 0 are not
        made.
        """
        target = torch.zeros_like(teacher.x)
        if self.alternative and any(teacher.sentences.anchors):
            target = self.alternative * (teacher.anchor - teacher.unconditional)
        return target - self.eta * (teacher.concept - teacher.unconditional) if self.eta else target
