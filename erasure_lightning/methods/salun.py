"""SalUn: the concept is relabelled as its anchor, in the weights that matter most to it.

Fan et al., SalUn: Empowering Machine Unlearning via Gradient-based Weight Saliency, arXiv
2310.12508. Official code OPTML-Group/Unlearn-Saliency @ a6e89fd (`SD/train-scripts`), verified in
code:

* saliency, once, at the original's weights: over all pictures of the concept, the signed slopes of
  ``mse( n, (1 + g) eps(x_t, c_f) - g eps(x_t, 0) )``, g = 7.5, are summed; the half of all weights
  whose sums are largest in size may move, at one cut for the whole denoiser. Slopes of everything
  else are set to 0 before Adam.
* loss: ``mse( eps(x_t, c_f), sg eps(x_t, c_p) ) + alpha mse( n', eps(x'_t, c_r) )``: on pictures of
  the concept, its sentence ``c_f`` is taught what the network *in training* says of the pseudo
  label ``c_p``; pictures ``x'`` of what remains are denoised under their own names.

Pseudo label is the anchor in the same sentence (officially the next class; of nudity, a person
wearing clothes), the empty prompt where a concept has none. Pictures are drawn by the original
itself, as the authors do for nudity (800 and 800), and kept as latents; for classes they take
Imagenette's. What remains is everything else the world can draw, in its captions (80 things of COCO
where there is no world), as for classes; for nudity it is the anchor alone.

Where the official code has a bug and ours differs: until February 2026 every step began its loaders
anew, so that the published numbers come from the same first 8 pictures of the concept in every step
(and, for nudity, the same first 8 of what remains); ours draws from all. It encodes a picture
twice, so that both sides of the first term see other latents; ours one. A velocity model is taught
its own form of the noise. The variant by soft threshold is left out.

Its numbers for SD 1.4: Adam 1e-5 (constant), batches of 8; alpha 0.5 and 5 epochs for classes, 0.1
and 100 steps for nudity. Those of classes are the defaults, and the 800 pictures drawn for nudity
(7.5, and 50 steps in place of 100).

Cost of a step: 2 forwards and backwards, 1 forward (without alpha 1 and 1). Saliency costs 2
forwards and backwards for each picture of the concept, the pictures twice ``steps`` forwards, once.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from erasure_lightning.backbones.interface import Part
from erasure_lightning.concepts.vocabulary import Vocabulary
from erasure_lightning.diffusion.latent_dataset import LatentDataset
from erasure_lightning.errors import ErasureError
from erasure_lightning.seeding import derive_seed
from erasure_lightning.training.image_sources import GeneratedImages
from erasure_lightning.training.latent_sources import LatentSource, Models, NoisyBatch, alternatives
from erasure_lightning.training.saliency import Masks, SalientErasure, salient

#: ``g`` of the loss whose slopes are the saliency.
GUIDANCE = 7.5

#: Pictures a backward in the saliency pass.
CHUNK = 8


class SalUn(SalientErasure):
    """Saliency unlearning: says of the concept what it says of the anchor, by the weights that draw
    the concept.

    Args:
        alpha: Weight of denoising pictures of what remains, at least 0; 0 for none.
        remaining: Images of what remains, as many steps and as much guidance as the concepts' have;
            at least 1.
        share: Of the weights that may move, above 0; at 1 all, and no saliency is taken.
        train: Which part of the denoiser, as in ESD: ``all`` of it, or ``x``, its cross-attention.
        lr: Highest learning rate.
        kwargs: Arguments of every gradient method.

    Raises:
        ErasureError: If a number is out of range, or latents are no generated images.
    """

    default_steps = 500

    def __init__(
        self,
        *,
        alpha: float = 0.5,
        remaining: int = 800,
        share: float = 0.5,
        train: Part = "all",
        lr: float = 1e-5,
        **kwargs: Any,
    ) -> None:
        super().__init__(share=share, lr=lr, **kwargs)
        if alpha < 0 or remaining < 1:
            raise ErasureError(
                f"SalUn needs alpha of at least 0, remaining of at least 1; found {alpha},"
                f" {remaining}."
            )
        if not isinstance(self.latents, GeneratedImages):
            found = type(self.latents).__name__
            raise ErasureError(
                f"SalUn needs images that the original generates; found {found}. Give"
                " GeneratedImages."
            )
        self.alpha = alpha
        self.remaining = remaining
        self.train_part = train

    def default_latents(self) -> LatentSource:
        """Images of the concepts: 800 in the official code for nudity."""
        return GeneratedImages(images=800)

    def editable(self) -> dict[str, nn.Parameter]:
        """The part of the denoiser that ``train`` names; the saliency masks decide what of it
        moves.
        """
        return self.backbone.denoiser_parameters(self.train_part)

    def models(self) -> Models:
        """Images are drawn for sentences of their own."""
        sentences = partial(self.sentences, salt=7)
        return replace(
            super().models(), sentences=sentences, seed=derive_seed(self.seed, self.global_rank, 7)
        )

    def on_train_start(self) -> None:
        """Draw the images of what remains, which a resumed run draws again, and find the masks."""
        source = cast(GeneratedImages, self.latents)
        if self.alpha:
            first = source.images * len(self.concepts)  # those of the concepts come before
            self._captions = self._others(self.remaining)
            seed, steps, guidance = self.models().seed, source.steps, source.guidance
            self._kept_images = LatentDataset(
                self.original, self._captions, seed, steps=steps, guidance=guidance, first=first
            )
        super().on_train_start()

    def _others(self, count: int) -> list[str]:
        """Captions of ``count`` things that remain, in random order; all things once before any
        comes again.
        """
        vocabulary = Vocabulary(self.backbone.world, self.concepts)
        generator = torch.Generator().manual_seed(derive_seed(self.seed, self.global_rank, 9))
        captions = [vocabulary.retained_captions(label) for label in vocabulary.others]
        order = torch.randperm(len(captions), generator=generator).tolist()
        turns = (divmod(i, len(order)) for i in range(count))
        return [captions[order[i]][(turn + i) % len(captions[order[i]])] for turn, i in turns]

    def saliency(self) -> Masks:
        """The largest gradients of denoising the concepts' images, at one cut for all weights."""
        rows = range(len(cast(GeneratedImages, self.latents).sentences.concepts))
        losses = (self.denoising(rows[i : i + CHUNK]) for i in range(0, len(rows), CHUNK))
        return salient(self.slopes(losses), self.share)

    def denoising(self, rows: Sequence[int]) -> Tensor:
        """``mse(n, (1 + g) eps(x_t, c_f) - g eps(x_t, 0))`` for images of concepts by number, a
        scalar.
        """
        batch = cast(GeneratedImages, self.latents).at(list(rows), self.models())
        unconditional = self.student(batch, self.backbone.unconditional(len(batch)))
        guided = (1 + GUIDANCE) * self.student(batch) - GUIDANCE * unconditional
        return mse_loss(guided, cast(Tensor, batch.target))

    def erasure_loss(self, batch: NoisyBatch) -> Tensor:
        """``mse(eps(x_t, c_f), sg eps(x_t, c_p)) + alpha mse(n', eps(x'_t, c_r))``."""
        with torch.no_grad():
            target = self.student(batch, alternatives(self.backbone, batch.sentences))
        loss = mse_loss(self.student(batch), target)
        return loss + self.alpha * self.remaining_loss(len(batch)) if self.alpha else loss

    def remaining_loss(self, count: int) -> Tensor:
        """``mse(n', eps(x'_t, c_r))`` on ``count`` random images of what remains, a scalar."""
        rows = torch.randint(len(self._captions), (count,)).tolist()
        x, t, target = self._kept_images.noised(rows)
        captions = self.backbone.encode([self._captions[i] for i in rows])
        return mse_loss(self.backbone.denoise(x, t, captions), target)
