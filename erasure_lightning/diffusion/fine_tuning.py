"""Fine-tuning of a copy of a model with the denoising loss, for relearning attacks."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.optim import AdamW

from erasure_lightning.backbones.base import Backbone
from erasure_lightning.backbones.conditioning import Conditioning
from erasure_lightning.backbones.interface import Part
from erasure_lightning.backbones.precision import promote_to_float32
from erasure_lightning.checks import require
from erasure_lightning.concepts.concept import Phrase
from erasure_lightning.diffusion.latent_dataset import LatentDataset
from erasure_lightning.seeding import derive_seed

#: The trained part: one of the denoiser as in ESD, the text encoder alone, or all of both.
TrainedPart = Literal["x", "x-strict", "u", "all", "text", "everything"]

#: Values of `TrainedPart` -> part of the denoiser.
_DENOISER_PARTS: dict[str, Part] = {
    "x": "x",
    "x-strict": "x-strict",
    "u": "u",
    "all": "all",
    "everything": "all",
}


def trained_parameters(backbone: Backbone, train: TrainedPart) -> dict[str, nn.Parameter]:
    """Parameters of a `TrainedPart`, by name in the backbone, with those of attached adapters."""
    named: dict[str, nn.Parameter] = {}
    if train in _DENOISER_PARTS:
        named |= backbone.denoiser_parameters(_DENOISER_PARTS[train])
    if train in ("text", "everything"):
        named |= backbone.text_parameters()
    return named


class FineTuning:
    """Fine-tunes a copy of a model on images with prompts; the model itself does not change.

    The loss is that of pretraining, ``mse(eps(x_t, c), n)`` in the form of the denoiser's
    prediction, at times ``t`` drawn uniformly. AdamW at a constant rate, weight decay 0.01, no
    warm-up: the defaults of diffusers' ``train_text_to_image.py``.

    Args:
        backbone: The model. Its trained parameters are copied, the others shared.
        dataset: The images.
        prompts: The prompt of each image; images beyond the prompts are not used.
        train: The trained part.
        lr: Learning rate, at least 0.
        batch_size: Images per step, at least 1; drawn with replacement, so that a dataset may be
            smaller.
        seed: Seed of images, times and noise; a step's draws do not depend on the number of images.

    Raises:
        ErasureError: If a number is out of range.
    """

    def __init__(
        self,
        backbone: Backbone,
        dataset: LatentDataset,
        prompts: Sequence[str | Phrase],
        *,
        train: TrainedPart = "all",
        lr: float = 1e-4,
        batch_size: int = 8,
        seed: int = 0,
    ) -> None:
        require("Fine-tuning", at_least=0, lr=lr)
        require("Fine-tuning", at_least=1, batch_size=batch_size)
        names = list(trained_parameters(backbone, train))
        self.model = backbone.frozen_copy(names)
        self.dataset = dataset
        self.prompts = prompts
        self.batch_size = batch_size
        self.seed = seed
        self.steps = 0
        copied = dict(self.model.named_parameters())
        self._trained = [copied[name].requires_grad_(True) for name in names]
        promote_to_float32(self._trained)
        self._adam = AdamW(self._trained, lr=lr)
        with torch.no_grad():
            fixed = train not in ("text", "everything")
            self._conditioning = self._encode(range(len(prompts))) if fixed else None

    def advance(self, to: int) -> Backbone:
        """Trains to ``to`` steps in total and returns the model, which the next call changes."""
        with torch.random.fork_rng(devices=[]):
            for step in range(self.steps, to):
                torch.manual_seed(derive_seed(self.seed, step))
                self._step()
        self.steps = max(self.steps, to)
        return self.model

    def loss(self) -> Tensor:
        """The loss of a batch drawn with the global generator, a scalar."""
        rows = (torch.rand(self.batch_size) * len(self.prompts)).long().tolist()
        x, t, target = self.dataset.noised(rows)
        fixed = self._conditioning
        conditioning = self._encode(rows) if fixed is None else fixed[rows]
        return mse_loss(self.model.denoise(x, t, conditioning), target)

    def _encode(self, rows: Sequence[int]) -> Conditioning:
        return self.model.encode([self.prompts[row] for row in rows])

    def _step(self) -> None:
        # Not `backward`, which would leave gradients in parameters shared with the original.
        gradients = torch.autograd.grad(self.loss(), self._trained, allow_unused=True)
        for parameter, gradient in zip(self._trained, gradients, strict=True):
            parameter.grad = gradient
        self._adam.step()
