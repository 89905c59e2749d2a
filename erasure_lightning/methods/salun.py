"""SalUn: the concept is relabelled as its anchor, in the weights that matter most to it.

Fan et al., SalUn: Empowering Machine Unlearning via Gradient-based Weight Saliency, arXiv 2310.12508. Official code
OPTML-Group/Unlearn-Saliency @ a6e89fd (`SD/train-scripts`), verified in code:

* saliency, once, at the original's weights: over all pictures of the concept, the signed slopes of
  ``mse( n, (1 + g) eps(x_t, c_f) - g eps(x_t, 0) )``, g = 7.5, are summed; the half of all weights whose sums are
  largest in size may move, at one cut for the whole denoiser. Slopes of everything else are set to 0 before Adam.
* loss: ``mse( eps(x_t, c_f), sg eps(x_t, c_p) ) + alpha mse( n', eps(x'_t, c_r) )``: on pictures of the concept,
  its sentence ``c_f`` is taught what the network *in training* says of the pseudo label ``c_p``; pictures ``x'`` of
  what remains are denoised under their own names.

Pseudo label is the anchor in the same sentence (officially the next class; of nudity, a person wearing clothes), the
empty prompt where a concept has none. Pictures are drawn by the original itself, as the authors do for nudity (800 and
800), and kept as latents; for classes they take Imagenette's. What remains is everything else the world can draw, in
its captions (80 things of COCO where there is no world), as for classes; for nudity it is the anchor alone.

Where the official code has a bug and ours differs: until February 2026 every step began its loaders anew, so that the
published numbers come from the same first 8 pictures of the concept in every step (and, for nudity, the same first 8
of what remains); ours draws from all. It encodes a picture twice, so that both sides of the first term see other
latents; ours one. A velocity model is taught its own form of the noise. The variant by soft threshold is left out.

Its numbers for SD 1.4: Adam 1e-5 (constant), batches of 8; alpha 0.5 and 5 epochs for classes, 0.1 and 100 steps for
nudity. Those of classes are the defaults, and the 800 pictures drawn for nudity (7.5, and 50 steps in place of 100).

Cost of a step: 2 forwards and backwards, 1 forward (without alpha 1 and 1). Saliency costs 2 forwards and backwards for
each picture of the concept, the pictures twice ``steps`` forwards, once.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from erasure_lightning.backbones.base import Part
from erasure_lightning.concepts import Batch
from erasure_lightning.errors import ErasureError
from erasure_lightning.functional import mix
from erasure_lightning.gallery import Gallery
from erasure_lightning.saliency import Masks, SalientErasure, salient
from erasure_lightning.vocabulary import Vocabulary

#: ``g`` of the loss whose slopes are the saliency.
GUIDANCE = 7.5

#: Pictures a backward in the saliency pass.
CHUNK = 8


class SalUn(SalientErasure):
    """Saliency unlearning: says of the concept what it says of the anchor, by the weights that draw the concept.

    Args:
        alpha: Weight of denoising pictures of what remains, at least 0; 0 for none.
        pictures: How many are drawn of the concepts, and as many of what remains; at least 1, and one a concept.
        steps: Sampling steps of each, at least 1.
        guidance: Scale of classifier-free guidance while they are drawn.
        share: Of the weights that may move, above 0; at 1 all, and no saliency is taken.
        train: Which part of the denoiser, as in ESD: ``all`` of it, or ``x``, its cross-attention.
        lr: Highest learning rate.
        kwargs: Arguments of every gradient method.

    Raises:
        ErasureError: If a number is out of range, or there is a bank, which it has no use for.
    """

    def __init__(
        self,
        *,
        alpha: float = 0.5,
        pictures: int = 800,
        steps: int = 50,
        guidance: float = 7.5,
        share: float = 0.5,
        train: Part = "all",
        lr: float = 1e-5,
        **kwargs: Any,
    ) -> None:
        super().__init__(share=share, lr=lr, **kwargs)
        if alpha < 0 or pictures < 1 or steps < 1:
            found = f"{alpha}, {pictures}, {steps}"
            raise ErasureError(f"SalUn needs alpha of at least 0, pictures and steps of at least 1; found {found}.")
        if self.bank is not None:
            raise ErasureError("SalUn needs no bank: it noises pictures. Found one; leave it out.")
        self.alpha, self.pictures, self.steps, self.guidance = alpha, pictures, steps, guidance
        self.train_part = train

    def editable(self) -> dict[str, nn.Parameter]:
        """The part of the denoiser that ``train`` names; the saliency masks decide what of it moves."""
        return self.backbone.denoiser_parameters(self.train_part)

    def on_train_start(self) -> None:
        """Draw the pictures, which a resumed run draws again, and find the masks."""
        count = max(self.pictures, len(self.concepts))
        self._forgotten: Batch = self.trainer.datamodule.sentences(count, 0, salt=7)  # type: ignore[attr-defined]
        self._remaining = self._others(self.pictures) if self.alpha else []
        prompts = [*self._forgotten.prompts, *self._remaining]
        seed = mix(self.seed, self.global_rank, 7)
        self._gallery = Gallery(self.original, prompts, seed, steps=self.steps, guidance=self.guidance)
        super().on_train_start()

    def _others(self, count: int) -> list[str]:
        """Captions of ``count`` things that remain, in random order; all things once before any comes again."""
        vocabulary = Vocabulary(self.backbone.world, self.concepts)
        generator = torch.Generator().manual_seed(mix(self.seed, self.global_rank, 9))
        captions = [vocabulary.kept_captions(label) for label in vocabulary.others]
        order = torch.randperm(len(captions), generator=generator).tolist()
        turns = (divmod(i, len(order)) for i in range(count))
        return [captions[order[i]][(turn + i) % len(captions[order[i]])] for turn, i in turns]

    def saliency(self) -> Masks:
        """The largest slopes of denoising the concepts' pictures, at one cut for all weights."""
        rows = range(len(self._forgotten.concepts))
        losses = (self.denoising(rows[i : i + CHUNK]) for i in range(0, len(rows), CHUNK))
        return salient(self.slopes(losses), self.share)

    def denoising(self, rows: Sequence[int]) -> Tensor:
        """``mse(n, (1 + g) eps(x_t, c_f) - g eps(x_t, 0))`` for pictures of concepts by number, a scalar."""
        x, t, target = self._gallery.noised(rows)
        said, nothing = (self.student(x, t, p) for p in (self._shown(rows).prompts, [""] * len(rows)))
        return mse_loss((1 + GUIDANCE) * said - GUIDANCE * nothing, target)

    def _shown(self, rows: Sequence[int]) -> Batch:
        return Batch(*([field[i] for i in rows] for field in self._forgotten))

    def noisy_latents(self, batch: Batch) -> tuple[Tensor, Tensor, Batch]:
        """A random picture of each concept, noised, and the sentence it was drawn for."""
        shown = self._forgotten.concepts
        of = [[i for i, name in enumerate(shown) if name == concept] for concept in batch.concepts]
        rows = [own[int(torch.randint(len(own), ()))] for own in of]
        x, t, _ = self._gallery.noised(rows)
        return x, t, self._shown(rows)

    def erasure_loss(self, x: Tensor, t: Tensor, batch: Batch) -> Tensor:
        """``mse(eps(x_t, c_f), sg eps(x_t, c_p)) + alpha mse(n', eps(x'_t, c_r))``."""
        with torch.no_grad():
            wanted = self.student(x, t, batch.alternatives)
        loss = mse_loss(self.student(x, t, batch.prompts), wanted)
        return loss + self.alpha * self.remaining(len(x)) if self.alpha else loss

    def remaining(self, count: int) -> Tensor:
        """``mse(n', eps(x'_t, c_r))`` on ``count`` random pictures of what remains, a scalar."""
        rows = torch.randint(len(self._remaining), (count,)).tolist()
        x, t, target = self._gallery.noised([len(self._forgotten.concepts) + i for i in rows])
        return mse_loss(self.student(x, t, [self._remaining[i] for i in rows]), target)
