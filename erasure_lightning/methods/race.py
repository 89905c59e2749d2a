"""RACE: erases a concept as ESD does, against changes of the text states.

Kim, Min and Yang, R.A.C.E.: Robust Adversarial Concept Erasure for Secure Text-to-Image Diffusion
Model, arXiv 2405.16341. Official code chkimmmmm/R.A.C.E. @ 424b9c0, `train-scripts/train-esd.py`,
verified in code. With ``c`` the concept's text states and ``d`` a change of each by at most
``radius``, at a latent and a time (a *single timestep*):

* attack: ``min over d of mse( eps(x_t, c + d), n )``, from a random ``d``: 10 steps of a quarter of
  the radius on the signs of gradients, each followed by a projection into the ball and into the
  range of the states' values;
* erasure: ``mse( eps(x_t, c + d), eps*(0) - eta (eps*(c) - eps*(0)) )`` with ``eta`` 1.

It starts from an edit of ESD. Here a run begins with ESD's own steps (``attack_from``), on the same
optimizer; in the official code the attacked steps are a run of their own, whose teacher is the
original too.

Where ours differs: the official target ``n`` of the attack is the noise that the rollout started
from, which is not that of ``x_t``; ours is ``eps*(c)``, its mean at ``x_t`` (`Adversary`). The
official option for the number of attack steps is ignored (10 in the code). Its latents are the
student's, 39 to 58 (of 1000) times cleaner than their time, as in ESD of 2023, whose loop it is;
ours those of ``latents``. The option of an ``L1`` distance to the weights of the start
(``lasso``, of the paper's discussion) is left out: retention callbacks serve the same purpose.

Its numbers for SD 1.4: ESD's 1e-5 (Adam, constant) and 1000 steps of 1 sentence, radius 0.1. The
defaults are twice 1000 steps. Cost of a step on a bank: ``attack_steps + 1`` forwards and backwards
of the denoiser.
"""

from typing import Any

from torch import Tensor

from erasure_lightning.backbones.interface import Part
from erasure_lightning.checks import require
from erasure_lightning.training.adapter_methods import PartErasure
from erasure_lightning.training.adversary import Adversary
from erasure_lightning.training.adversary_kinds import StateAdversary
from erasure_lightning.training.latent_sources import NoisyBatch


class RACE(PartErasure):
    """Robust adversarial concept erasure: ESD's loss at the worst text states near the concept's.

    Args:
        train: Which part of the denoiser, as in ESD: ``x`` is its cross-attention.
        eta: Negative guidance of the target, as in ESD; at least 0.
        radius: Largest change of a text state, above 0.
        attack_from: First step with an attack: the number of ESD's steps before, for all concepts
            together; at least 0.
        attack_steps: Steps of each attack, at least 0; each costs as much as the erasure. 0 for
            none.
        adversary: Another search, in the place of that for text states.
        lr: Highest learning rate.
        kwargs: Arguments of `GradientErasure`, and of `PartErasure` (``rank`` for adapters).

    Raises:
        ErasureError: If a number is out of range.
    """

    default_steps = 2000

    def __init__(
        self,
        *,
        train: Part = "x",
        eta: float = 1.0,
        radius: float = 0.1,
        attack_from: int = 1000,
        attack_steps: int = 10,
        adversary: Adversary | None = None,
        lr: float = 1e-5,
        **kwargs: Any,
    ) -> None:
        require("RACE", above=0, radius=radius)
        require("RACE", at_least=0, eta=eta, attack_from=attack_from, attack_steps=attack_steps)
        states = StateAdversary(radius=radius, begin=attack_from, steps=attack_steps)
        super().__init__(train=train, lr=lr, adversary=adversary or states, **kwargs)
        self.eta = eta

    def erasure_loss(self, batch: NoisyBatch) -> Tensor:
        """``mse(eps(c + d), eps*(0) - eta (eps*(c) - eps*(0)))``; no ``d`` in ESD's steps."""
        teacher = batch.teacher
        target = teacher.unconditional - self.eta * (teacher.concept - teacher.unconditional)
        return self.prediction_error(self.student(batch), target, batch.t)
