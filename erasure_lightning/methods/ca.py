"""CA: the concept's sentence is taught what the anchor's sentence draws, on pictures of the anchor.

Kumari et al., Ablating Concepts in Text-to-Image Diffusion Models, arXiv 2303.13516. Official code
nupurkmr9/concept-ablation @ c11fb1b (`compvis/` is the paper's, `diffusers/` a second one). With
``x_0`` a picture of the anchor's sentence ``c_a``, ``n`` fresh noise, ``t`` uniform and ``x_t``
noised accordingly, verified in code:

* ``model``: ``mse( eps(x_t, c_e), sg eps(x_t, c_a) )``. The target is the network in training, not
  a frozen copy.
* ``noise``: ``mse( eps(x_t, c_e), n )``: pictures of the anchor under the concept's name.
* ``prior`` times ``mse( eps(x'_t, c_a), n' )`` on a second draw of the same pictures; off by
  default.
* No slope reaches keys and values through the start token, whose state is the same in every prompt,
  the empty one too.

Pictures are drawn once, before the first step, by the original itself: as latents, for nobody looks
at them and the autoencoder would only take them back. Each keeps its sentence, and the concept's is
the same one with its words exchanged. A concept without an anchor is taught the empty prompt and
what that draws. The official code draws 1,000 of 200 written prompts a concept (25 steps at
guidance 6).

Where ours differs: a velocity model is taught its own form of the noise (the official prior is
not); words are exchanged in a template, where the official string replacement also hits parts of
words. No masks, and no pictures scaled, pasted or cropped (the official augmentation of objects),
since that is done to pixels; its losses are sums over channels and so 4 times ours: its prior
weight 1 (diffusers) is our 0.25, its 0.2 (compvis) is 0.2 here. Rates for SD 1.4 are 1.6e-5 (AdamW,
decay 0.01, constant) over 100 steps of 8: the defaults.

Cost of a step: 1 forward (``model``), 1 forward and backward, one more of those with a prior. The
pictures cost twice ``steps`` forwards each, once.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from erasure_lightning.backbones.conditioning import Conditioning
from erasure_lightning.backbones.interface import Part
from erasure_lightning.errors import ErasureError
from erasure_lightning.seeding import derive_seed
from erasure_lightning.training.gradient import GradientErasure
from erasure_lightning.training.image_sources import GeneratedImages
from erasure_lightning.training.latent_sources import LatentSource, Models, NoisyBatch, alternatives
from erasure_lightning.training.optimizers import Kind


@contextmanager
def start_token_held(layers: Iterable[nn.Module]) -> Iterator[None]:
    """While it is entered, no slope reaches the layers through the first position of their text
    ``(B, L, D)``.
    """

    def hold(_: nn.Module, __: Any, out: Tensor) -> Tensor:
        return torch.cat((out[:, :1].detach(), out[:, 1:]), dim=1)

    handles = [layer.register_forward_hook(hold) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class CA(GradientErasure):
    """Concept Ablation: draws the anchor where the concept is asked for.

    Args:
        target: What the concept's sentence is taught: the ``model``'s own words for the anchor, or
            the ``noise``.
        prior: Weight of denoising the anchor's pictures under their own name, at least 0; 0 for
            none.
        train: Which part of the denoiser, as in ESD: ``x-strict`` is its keys and values of text,
            ``all`` the official choice for memorised pictures.
        lr: Highest learning rate.
        optimizer: As in every gradient method.
        kwargs: Arguments of every gradient method.

    Raises:
        ErasureError: If a number is out of range.
    """

    default_steps = 100

    def __init__(
        self,
        *,
        target: Literal["model", "noise"] = "model",
        prior: float = 0.0,
        train: Part = "x-strict",
        lr: float = 1.6e-5,
        optimizer: Kind = "adamw",
        **kwargs: Any,
    ) -> None:
        super().__init__(lr=lr, optimizer=optimizer, **kwargs)
        if prior < 0:
            raise ErasureError(f"CA needs prior of at least 0; found {prior}.")
        self.target = target
        self.prior = prior
        self.train_part = train

    def default_latents(self) -> LatentSource:
        """Images of the anchors: 1,000 at 25 steps and guidance 6 in the official code."""
        return GeneratedImages(images=1000, steps=25, guidance=6.0, of="anchor")

    def editable(self) -> dict[str, nn.Parameter]:
        """The part of the denoiser that ``train`` names."""
        return self.backbone.denoiser_parameters(self.train_part)

    def models(self) -> Models:
        """Images are drawn for sentences of their own."""
        sentences = partial(self.sentences, salt=6)
        return replace(
            super().models(), sentences=sentences, seed=derive_seed(self.seed, self.global_rank, 6)
        )

    def student(self, batch: NoisyBatch, conditioning: Conditioning | None = None) -> Tensor:
        """The edited model's predictions, ``(B, C, h, w)``, without a gradient through the start
        token.
        """
        with start_token_held(self.backbone.text_layers().values()):
            return super().student(batch, conditioning)

    def erasure_loss(self, batch: NoisyBatch) -> Tensor:
        """``mse(eps(x, c_e), sg eps(x, c_a))`` or ``mse(eps(x, c_e), n)``, and the prior.

        Raises:
            ErasureError: If the noise is predicted of latents without clean ones.
        """
        if self.target == "model":
            with torch.no_grad():
                target = self.student(batch, alternatives(self.backbone, batch.sentences))
        else:
            target = noise_target(batch)
        loss = mse_loss(self.student(batch), target)
        if not self.prior:
            return loss
        again = self.noisy_batch(batch.sentences)
        anchors = self.student(again, alternatives(self.backbone, again.sentences))
        return loss + self.prior * mse_loss(anchors, noise_target(again))


def noise_target(batch: NoisyBatch) -> Tensor:
    """The prediction of a perfect denoiser, ``(B, C, h, w)``.

    Raises:
        ErasureError: If the source of the latents has no clean ones.
    """
    if batch.target is None:
        raise ErasureError(
            "CA with target noise or a prior needs images; give latents GeneratedImages or"
            " ImageFolder."
        )
    return batch.target
