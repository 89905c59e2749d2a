"""CA: trains the concept's prediction to match the anchor's, on images of the anchor.

Kumari et al., Ablating Concepts in Text-to-Image Diffusion Models, arXiv 2303.13516. Official code
nupurkmr9/concept-ablation @ c11fb1b (`compvis/` is the paper's, `diffusers/` a second one). With
``x_0`` an image of the anchor's sentence ``c_a``, ``n`` fresh noise, ``t`` uniform and ``x_t`` the
noised latent, verified in code:

* ``model``: ``mse( eps(x_t, c_e), sg eps(x_t, c_a) )``. The target is the network in training, not
  a frozen copy.
* ``noise``: ``mse( eps(x_t, c_e), n )``: images of the anchor under the concept's name.
* ``prior`` times ``mse( eps(x'_t, c_a), n' )`` on a second draw of the same images; off by default.
* No gradient reaches keys and values through the start token, whose state is the same in every
  prompt, the empty one too.

Images are generated once, before the first step, by the original itself, and stored as latents, so
that the autoencoder is not needed. Each has its sentence, and the concept's is the same one with
the words replaced. For a concept without an anchor (the official code always has one) images and
target are of the empty prompt, encoded: Stable Diffusion XL's unconditional predictions have zeros
in place of its states. The official code generates 1,000 images of 200 written prompts a concept
(25 steps at guidance 6).

Where ours differs: for a style, the official code adds the name to the anchor's sentence, as
``<sentence>, in the style of <name>`` or, twice as often, ``in <name>'s style, <sentence>``; in
ours it replaces an anchor. For a thing both replace words, ours those of a template, while the
official string replacement also hits parts of words. The target of a velocity model is the noise in
its own parametrisation (the official prior's is not). There are no masks, and images are not
mirrored (``--hflip``), scaled, pasted or cropped (the official augmentation of objects), since that
is done to pixels. The official losses are sums over channels and so 4 times ours: its prior weight
1 and its clipping of gradients to 1 (diffusers) are our 0.25, its 0.2 (compvis) is 0.2 here. Rates
for SD 1.4 are 1.6e-5 (AdamW, decay 0.01, constant) over 100 steps of 8, the defaults; with a prior
``--scale_lr`` doubles them.

Cost of a step: 1 forward (``model``), 1 forward and backward, one more of those with a prior. The
images cost twice ``steps`` forwards each, once.
"""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from erasure_lightning.backbones.conditioning import START, Conditioning
from erasure_lightning.backbones.interface import Part
from erasure_lightning.checks import require
from erasure_lightning.errors import ErasureError
from erasure_lightning.seeding import derive_seed
from erasure_lightning.training.adapter_methods import PartErasure
from erasure_lightning.training.image_sources import GeneratedImages
from erasure_lightning.training.latent_sources import (
    LatentSource,
    NoisyBatch,
    SourceModels,
)
from erasure_lightning.training.optimizers import OptimizerName


@contextmanager
def start_token_detached(layers: Iterable[nn.Module], starts: Tensor) -> Iterator[None]:
    """Context in which no gradient reaches ``layers`` through start tokens.

    Args:
        layers: Maps of text states ``(B, L, D)``.
        starts: Positions of start tokens, boolean ``(B, L)``; T5 has none.
    """

    def detach_starts(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        return torch.where(starts.unsqueeze(2), output.detach(), output)

    with ExitStack() as hooks:
        for layer in layers:
            hooks.callback(layer.register_forward_hook(detach_starts).remove)
        yield


class CA(PartErasure):
    """Concept Ablation: matches the concept's prediction to the anchor's.

    Args:
        target: Target of the concept's prediction: the ``model``'s prediction for the anchor, or
            the ``noise``.
        prior: Weight of denoising the anchor's images under their own name, at least 0; 0 for none.
        train: Which part of the denoiser, as in ESD: ``x-strict`` is its keys and values of text,
            ``all`` the official choice for memorised images.
        lr: Highest learning rate.
        optimizer: As in every gradient method.
        kwargs: Arguments of `GradientErasure`, and of `PartErasure` (``rank`` for adapters).

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
        optimizer: OptimizerName = "adamw",
        **kwargs: Any,
    ) -> None:
        super().__init__(train=train, lr=lr, optimizer=optimizer, **kwargs)
        require("CA", at_least=0, prior=prior)
        self.target = target
        self.prior = prior

    def default_latents(self) -> LatentSource:
        """Images of the anchors: 1,000 at 25 steps and guidance 6 in the official code."""
        return GeneratedImages(images=1000, steps=25, guidance=6.0, of="anchor")

    def models(self) -> SourceModels:
        """Images have sentences of their own, apart from the steps'."""
        sentences = partial(self.prompts.covering, salt=6)
        seed = derive_seed(self.seed, self.global_rank, 6)
        return replace(super().models(), sentences=sentences, seed=seed)

    def student(self, batch: NoisyBatch, conditioning: Conditioning | None = None) -> Tensor:
        """The edited model's predictions, ``(B, C, h, w)``; start tokens pass no gradient."""
        if conditioning is None:
            conditioning = self.concept_conditioning(batch)
        # By the original's names: an adapter hides the type of the layer that it wraps.
        layers = map(self.backbone.get_submodule, self.original.text_attention())
        with start_token_detached(layers, conditioning.positions(START)):
            return super().student(batch, conditioning)

    def erasure_loss(self, batch: NoisyBatch) -> Tensor:
        """``mse(eps(x, c_e), sg eps(x, c_a))`` or ``mse(eps(x, c_e), n)``, and the prior.

        Raises:
            ErasureError: If the target is the noise and the source has no clean latents.
        """
        if self.target == "model":
            with torch.no_grad():
                target = self.student(batch, self._anchor_conditioning(batch))
        else:
            target = noise_target(batch)
        loss = self.prediction_error(self.student(batch), target, batch.t)
        if not self.prior:
            return loss
        second = self.noisy_batch(batch.sentences)
        prediction = self.student(second, self._anchor_conditioning(second))
        return loss + self.prior * self.prediction_error(prediction, noise_target(second), second.t)

    def _anchor_conditioning(self, batch: NoisyBatch) -> Conditioning:
        """Conditioning of the prompts that the images were generated for, ``(B, L, D)``."""
        return self.backbone.encode(batch.sentences.anchor_or_empty_prompts)


def noise_target(batch: NoisyBatch) -> Tensor:
    """The prediction of a perfect denoiser, ``(B, C, h, w)``.

    Raises:
        ErasureError: If the source has no clean latents.
    """
    if batch.target is None:
        raise ErasureError(
            "CA with target noise or a prior needs images; give latents GeneratedImages or"
            " ImageFolder."
        )
    return batch.target
