"""Inpainting: the middle of an image of the concept is masked, and the model restores it.

A probe of When Are Concepts Erased (Lu et al. 2025, arXiv 2505.17013, NeurIPS): an edited model may
ignore a prompt on pure noise and follow it where the surroundings fit. With an image ``x_0``
of the concept and a mask ``m``, every step of the sampling with the concept's prompt takes

    ``x_t' = m (step of the edited model) + (1 - m) (a_t' x_0 + s_t' n)``

Verified in code (kevinlu4588/WhenAreConceptsErased@9a03e07, ``src/probes/inpainting_probe.py``):
images of the original for the concept's prompts, a mask of 256 x 256 pixels in the middle of 512 x
512, the inpainting pipeline of diffusers around a denoiser without inputs for a mask, hence the
blending above with one noise ``n`` for all steps; 50 steps, guidance 7.5. Its config's
``mask_size`` is never read: ``getattr`` on a dictionary returns the default.

Different: DDIM, so that every family's sampler and noise process serve; the known latents are set
through the prediction (a perfect denoiser's for ``x_0``), which is the same blending; the noise is
that of the reported seeds.

The scorer recognises the visible part too, so success alone is no evidence. Compare the controls
(`Probe`): the shuffled denoiser fills the mask with noise, and where it succeeds the mask is too
small; without the prompt the surroundings alone suggest what is missing.

Cost for each image: its sampling, and four times the sampling of the probe.
"""

from functools import partial

import torch
from torch import Tensor

from erasure_lightning.attacks.probe import Attempts, Probe, generate_by_ddim
from erasure_lightning.attacks.target import AttackCase, AttackTarget
from erasure_lightning.backbones.base import Backbone
from erasure_lightning.backbones.process import NoiseProcess
from erasure_lightning.checks import require
from erasure_lightning.diffusion.ddim import DDIMStep, StepChange, ddim_times


class Inpainting(Probe):
    """Masks the middle of images of the concept and lets the edited model restore it.

    Args:
        side: Side of the mask as a share of the image's, above 0, at most 1; rounded to latents.
        seed: Seed of everything the attack draws at random.

    Raises:
        ErasureError: If the share is out of range.
    """

    def __init__(self, *, side: float = 0.5, seed: int = 0) -> None:
        super().__init__(seed=seed)
        self.side = side
        require("Inpainting", above=0, at_most=1, side=side)

    def prepare(self, target: AttackTarget, case: AttackCase) -> Attempts:
        """Generate the images to restore; the baseline restores them without a prompt."""
        known = target.examples(case, len(case.seeds))
        noise = target.edited.noise(case.seeds, target.settings.image_size)
        mask = middle_mask(known, self.side)
        times = ddim_times(target.edited, target.steps, target.settings.image_size)

        def fill(prompt: str | None, model: Backbone, rows: slice) -> Tensor:
            change = keep_known(model.process, known[rows], mask)
            filled = generate_by_ddim(target, model, prompt, noise[rows], times, change)
            return model.decode(torch.where(mask, filled, known[rows]))

        return Attempts(partial(fill, case.prompt), {"no prompt": partial(fill, None)})


def middle_mask(latents: Tensor, side: float) -> Tensor:
    """A rectangle in the middle, boolean ``(h, w)``, of at least one latent.

    Args:
        latents: Latents ``(B, C, h, w)``.
        side: Share of each side, 0..1.
    """
    height, width = latents.shape[-2:]
    mask = torch.zeros(height, width, dtype=torch.bool, device=latents.device)
    rows = max(1, round(side * height))
    columns = max(1, round(side * width))
    top = (height - rows) // 2
    left = (width - columns) // 2
    mask[top : top + rows, left : left + columns] = True
    return mask


def keep_known(process: NoiseProcess, known: Tensor, mask: Tensor) -> StepChange:
    """The change of steps after which latents outside a mask are those of an image.

    Args:
        process: The model's noise process.
        known: Clean latents of the image, ``(B, C, h, w)``.
        mask: Where the prediction counts, boolean ``(h, w)``.
    """

    def change(step: DDIMStep) -> tuple[Tensor, Tensor]:
        noise = process.noise_in(step.x, known, step.t)
        return torch.where(mask, step.clean, known), torch.where(mask, step.noise, noise)

    return change
