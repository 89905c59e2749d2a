"""Latent inversion: the noise is looked for from which the edited model draws the concept, without
any words.

TINA (Xiang et al. 2026, arXiv 2603.17828) inverts pictures of the concept with the edited model
under the empty prompt and draws again from what it finds, with the same model and without guidance.
Plain DDIM inversion drifts off, so each ``x_t`` is solved for ``x_t = f(x_t, x_(t-1))``: there with
25 steps of AdamW, here with the fixed-point iteration of `inversion.invert`, which needs no
gradient. Memories of Forgotten Concepts (Rusanovsky et al. 2024, arXiv 2412.00782) finds the same
with other inversions. From descriptions of both papers; none of their code was read.

What success means: that there is noise from which the edited model draws the very pictures it was
given. It is *not* that the model knows them: an inversion that converges takes any latents back to
where they came from, with any network. So two controls are told with it, of the same pictures:

* ``untaught``: the same attack on the same denoiser with the entries of each of its weights
  shuffled, which knows nothing. On the emoji world it succeeds too (1.0 of the cigarettes), and
  where it does, success is no sign of memory: the noise has become a code for the picture. Evidence
  is what success has over this control.
* ``other noise``: the edited model under the empty prompt from noise it was not told: how often the
  concept turns up by itself.

Cost a picture: its sampling, and ``steps (2 + refinements)`` evaluations, once more for the
untaught model.
"""

import torch
from torch import Tensor

from erasure_lightning.attacks.base import ConceptAttack, Found, check_at_least
from erasure_lightning.attacks.target import Case, Target
from erasure_lightning.backbones.base import Backbone
from erasure_lightning.diffusion.inversion import invert, retrace


class LatentInversion(ConceptAttack):
    """Looks for the noise of the concept's pictures, without words.

    Args:
        steps: Of the way to noise and of the way back, at least 1; those of the target's pictures
            by default.
        refinements: Further evaluations a step, at least 0; 0 is plain DDIM inversion.
        seed: Of everything the attack draws.

    Raises:
        ErasureError: If a number is out of range.
    """

    def __init__(self, *, steps: int | None = None, refinements: int = 3, seed: int = 0) -> None:
        super().__init__(seed=seed)
        self.steps = steps
        self.refinements = refinements
        check_at_least(self, refinements=0, **({} if steps is None else {"steps": 1}))

    def find(self, target: Target, case: Case) -> Found:
        """Invert pictures that the original draws of the concept, and draw them again; then the
        controls.
        """
        given, seed = target.examples(case, len(case.seeds)), int(torch.randint(2**31, ()))
        noise, pictures = self._retold(target, target.edited, given)
        _, codes = self._retold(target, shuffled(target.edited, seed), given)
        unasked = self._drawn(target, target.edited, torch.randn(noise.shape).to(noise))
        return Found(
            pictures, tensors={"noise": noise}, controls={"untaught": codes, "other noise": unasked}
        )

    def _retold(self, target: Target, model: Backbone, given: Tensor) -> tuple[Tensor, Tensor]:
        """The noise of latents, and the pictures that a model draws from it."""
        steps = self.steps or target.steps
        parts = torch.split(given, target.trials.draw_size)
        noise = torch.cat(
            [invert(model, model.unconditional(len(x)), x, steps, self.refinements) for x in parts]
        )
        return noise, self._drawn(target, model, noise)

    @torch.no_grad()
    def _drawn(self, target: Target, model: Backbone, noise: Tensor) -> Tensor:
        steps = self.steps or target.steps
        parts = torch.split(noise, target.trials.draw_size)
        return torch.cat(
            [model.decode(retrace(model, model.unconditional(len(x)), x, steps)) for x in parts]
        )


@torch.no_grad()
def shuffled(backbone: Backbone, seed: int) -> Backbone:
    """A copy whose denoiser is of the same build and the same numbers, in an order that means
    nothing.

    Args:
        backbone: The model; left as it was.
        seed: Of the order.
    """
    names = list(backbone.denoiser_parameters())
    untaught, generator = backbone.frozen_copy(names), torch.Generator().manual_seed(seed)
    for name in names:
        weight = untaught.get_parameter(name)
        order = torch.randperm(weight.numel(), generator=generator).to(weight.device)
        weight.copy_(weight.flatten()[order].view_as(weight))
    return untaught
