"""Latent inversion: searches for the noise from which the edited model generates the concept.

TINA (Xiang et al. 2026, arXiv 2603.17828) inverts images of the concept with the edited model under
the empty prompt, and generates them again from the inverted noise, with the same model and without
guidance. Plain DDIM inversion drifts, so each ``x_t`` solves ``x_t = f(x_t, x_(t-1))``: there with
25 steps of AdamW, here with the fixed-point iteration of `inversion.invert`, which needs no
gradient. Memories of Forgotten Concepts (Rusanovsky et al. 2024, arXiv 2412.00782) has the same
result with other inversions. Implemented from descriptions of both papers; none of their code was
read.

Success means that there is noise from which the edited model generates the inverted images. It does
*not* mean that the model knows them: an inversion that converges returns any latents to where they
came from, with any network. So two controls are reported with it, of the same images:

* ``shuffled``: the same attack on the same denoiser with the entries of each of its weights
  shuffled, which has no knowledge. On the emoji world it succeeds too (1.0 of the cigarettes), and
  where it does, success is no evidence of memory: the noise has become a code for the image.
  Evidence is what success has over this control.
* ``other noise``: the edited model under the empty prompt from random noise: how often the concept
  appears by itself.

Cost for each image: its sampling, and ``steps (2 + refinements)`` evaluations, once more for the
shuffled model.
"""

import torch
from torch import Tensor

from erasure_lightning.attacks.base import AttackResult, ConceptAttack, check_at_least
from erasure_lightning.attacks.probe import shuffled_copy
from erasure_lightning.attacks.target import AttackCase, AttackTarget
from erasure_lightning.backbones.base import Backbone
from erasure_lightning.diffusion.inversion import invert, retrace


class LatentInversion(ConceptAttack):
    """Inverts images of the concept to noise and regenerates them without a prompt.

    Args:
        steps: Steps of the inversion and of the sampling, at least 1; the target's sampling steps
            by default.
        refinements: Further evaluations a step, at least 0; 0 is plain DDIM inversion.
        seed: Seed of everything the attack draws at random.

    Raises:
        ErasureError: If a number is out of range.
    """

    def __init__(self, *, steps: int | None = None, refinements: int = 3, seed: int = 0) -> None:
        super().__init__(seed=seed)
        self.steps = steps
        self.refinements = refinements
        check_at_least(self, refinements=0, steps=1)

    def find(self, target: AttackTarget, case: AttackCase) -> AttackResult:
        """Invert images that the original generates and regenerate them; then the controls."""
        latents = target.examples(case, len(case.seeds))
        seed = int(torch.randint(2**31, ()))
        noise, images = self._reconstruct(target, target.edited, latents)
        _, shuffled_images = self._reconstruct(target, shuffled_copy(target.edited, seed), latents)
        random_noise = torch.randn(noise.shape).to(noise)
        random_images = self._sample(target, target.edited, random_noise)
        return AttackResult(
            images,
            tensors={"noise": noise},
            controls={"shuffled": shuffled_images, "other noise": random_images},
        )

    def _reconstruct(
        self, target: AttackTarget, model: Backbone, latents: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The noise that latents invert to, and the images that a model generates from it."""
        steps = self.steps or target.steps
        size = target.settings.image_size
        noise = torch.cat(
            [
                invert(model, model.unconditional(len(x)), x, steps, self.refinements, size)
                for x in torch.split(latents, target.settings.image_batch_size)
            ]
        )
        return noise, self._sample(target, model, noise)

    @torch.no_grad()
    def _sample(self, target: AttackTarget, model: Backbone, noise: Tensor) -> Tensor:
        """Images that a model generates from noise under the empty prompt, without guidance."""
        steps = self.steps or target.steps
        size = target.settings.image_size
        latents = [
            retrace(model, model.unconditional(len(x)), x, steps, size=size)
            for x in torch.split(noise, target.settings.image_batch_size)
        ]
        return torch.cat([model.decode(each) for each in latents])
