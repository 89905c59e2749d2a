"""Constraint on the unconditional drift, the second term of All but One (arXiv 2312.12807).

``L_unc = E |eps(x, t, 0) - eps*(x, t, 0)|^2``: the two-term structure is inferred with high
confidence. Guidance subtracts the unconditional prediction in *every* image and multiplies the
difference, so that a drift of it changes all images. `AllButOne` evaluates the term at the
concept's own latents, in a forward that it needs anyway; here it serves other methods, at latents
that belong to no prompt. Measured with ESD on the emoji world, noise retained the prediction on
other prompts' trajectories better than the method's own latents did (mean squares .0009, .0015, and
.0088 without the term; one run each).

Cost per step, for each of ``batch_size`` latents: a denoiser forward and backward and a forward of
the original; no denoiser at all where the text encoder alone is edited.
"""

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from erasure_lightning.retention.base import RetentionCallback
from erasure_lightning.training.gradient import GradientErasure
from erasure_lightning.training.latent_sources import pure_noise
from erasure_lightning.training.prompt_states import state_drift


class UnconditionalDrift(RetentionCallback):
    """Retains the unconditional prediction.

    Where a method edits the text encoder alone, the prediction changes only through the empty
    prompt's states: then the states ``(L, D)`` are retained, which is stronger and cheaper.

    Args:
        weight: Weight of the term.
        batch_size: Noisy latents a step at which predictions are compared, on each rank.
        ramp: Steps over which the weight rises from 0; at least 0.
    """

    name = "unconditional"

    def __init__(self, weight: float = 1.0, batch_size: int = 4, ramp: int = 0) -> None:
        super().__init__(weight, prompts=[""], ramp=ramp)
        self.batch_size = batch_size

    def prepare(self, module: GradientErasure) -> None:
        """Encodes the empty prompt with the original, once."""
        with torch.no_grad():
            self._original = module.original.unconditional()
        self._edits_denoiser = module.backbone.edits_denoiser(module.editable())

    def term(self, module: GradientErasure) -> Tensor:
        """Mean squared change, a scalar."""
        unconditional = module.backbone.unconditional()
        if not self._edits_denoiser:
            return state_drift(unconditional, self._original)
        x, t = pure_noise(module.backbone, self.batch_size)
        with torch.no_grad():
            target = module.original.denoise(x, t, self._original.expand(self.batch_size))
        prediction = module.backbone.denoise(x, t, unconditional.expand(self.batch_size))
        return mse_loss(prediction, target)
