"""Plain fine-tuning of a copy of a model: what anybody may do to it once it is out."""

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
from erasure_lightning.concepts.concept import Phrase
from erasure_lightning.diffusion.latent_dataset import LatentDataset
from erasure_lightning.errors import ErasureError
from erasure_lightning.seeding import derive_seed

#: What is trained: a part of the denoiser as in ESD, the text encoder alone, or all of both.
TrainedPart = Literal["x", "x-strict", "u", "all", "text", "everything"]

_DENOISER_PARTS: dict[str, Part] = {
    "x": "x",
    "x-strict": "x-strict",
    "u": "u",
    "all": "all",
    "everything": "all",
}


def trained_parameters(backbone: Backbone, train: TrainedPart) -> dict[str, nn.Parameter]:
    """What a word of `TrainedPart` names, by name in the backbone; adapters count as parts of what they
    stand beside.
    """
    denoiser = (
        backbone.denoiser_parameters(_DENOISER_PARTS[train]) if train in _DENOISER_PARTS else {}
    )
    return denoiser | (backbone.text_parameters() if train in ("text", "everything") else {})


class FineTuning:
    """A copy of a model, trained on pictures and what is said of them; the model itself stays as it
    is, to the bit.

    The loss is the one that such models were made with, ``mse(eps(x_t, c), n)`` in the form that
    the denoiser predicts, at times ``t`` drawn from all there are. AdamW at a constant rate, decay
    0.01, no warm-up: what diffusers' ``train_text_to_image.py`` does when it is told nothing else.

    Args:
        backbone: The model. Copied where it is trained, shared where not.
        gallery: The pictures.
        prompts: What is said of each; of fewer prompts than pictures only the first pictures are
            looked at.
        train: What is trained.
        lr: Learning rate, at least 0.
        batch_size: Pictures a step, at least 1; drawn with replacement, so that a gallery may be
            smaller.
        seed: Of pictures, times and noise; a step's draws do not depend on how many pictures there
            are to choose from.

    Raises:
        ErasureError: If a number is out of range.
    """

    def __init__(
        self,
        backbone: Backbone,
        gallery: LatentDataset,
        prompts: Sequence[str | Phrase],
        *,
        train: TrainedPart = "all",
        lr: float = 1e-4,
        batch_size: int = 8,
        seed: int = 0,
    ) -> None:
        if lr < 0 or batch_size < 1:
            raise ErasureError(
                f"Fine-tuning needs lr of at least 0 and batch_size of at least 1; found {lr:g} and"
                f" {batch_size}."
            )
        names = list(trained_parameters(backbone, train))
        self.model = backbone.frozen_copy(names)
        self.gallery, self.prompts = gallery, prompts
        self.batch_size, self.seed = batch_size, seed
        self.steps = 0
        copied = dict(self.model.named_parameters())
        self._trained = [copied[name].requires_grad_(True) for name in names]
        promote_to_float32(self._trained)
        self._adam = AdamW(self._trained, lr=lr)
        with torch.no_grad():
            self._said = (
                None if train in ("text", "everything") else self._encoded(range(len(prompts)))
            )

    def advance(self, to: int) -> Backbone:
        """Train until ``to`` steps were taken in all, and give the model, which the next call
        trains on.
        """
        with torch.random.fork_rng(devices=[]):
            for step in range(self.steps, to):
                torch.manual_seed(derive_seed(self.seed, step))
                self._step()
        self.steps = max(self.steps, to)
        return self.model

    def loss(self) -> Tensor:
        """The loss on a batch that the global generator draws, a scalar."""
        rows = (torch.rand(self.batch_size) * len(self.prompts)).long().tolist()
        x, t, target = self.gallery.noised(rows)
        said = self._encoded(rows) if self._said is None else self._said[rows]
        return mse_loss(self.model.denoise(x, t, said), target)

    def _encoded(self, rows: Sequence[int]) -> Conditioning:
        return self.model.encode([self.prompts[row] for row in rows])

    def _step(self) -> None:
        # Not `backward`, which would leave slopes in what the model and its copy share.
        slopes = torch.autograd.grad(self.loss(), self._trained, allow_unused=True)
        for parameter, slope in zip(self._trained, slopes, strict=True):
            parameter.grad = slope
        self._adam.step()
