"""MACE: mass concept erasure (Lu et al., CVPR 2024, arXiv 2403.06135).

(1) Closed-form refinement: in all text layers the words around a concept, end and padding come out as they would around
its anchor; the concept's own tokens are in no term. (2) An adapter per concept is trained on those weights until pixels
that show the concept no longer attend to its tokens. (3) A second closed form fuses them: on concept ``i``'s sentences
one set of weights does what ``W_cfr + dW_i`` did.

Official code: Shilin-LU/MACE @ 057e7a6. Verified there: token alignment, sums (not means) over sentences and rows, both
systems, loss, latents, initial ``A`` and ``B``. Different here: preservation has its weight in stage 1 once (there
twice: 1e-8 for 1e-4); masks are the original's attention, there Grounded-SAM's; ten sentences for thirty; batches mix
concepts, each row in its own adapter; float64. Defaults are its numbers for a thing and SD 1.4: ridge 1000, preserve 0,
AdamW 1e-5 (constant, decay 0.01); 50 steps a concept (``data.rounds``), gradients clipped to 1. For people, styles and
explicit content it has ridge 0, 1e-4, preserve 1e-4 on COCO's captions, and beside them captions of the domain
(celebrities, artists) at 8e3 to 2e5. Its Gram matrices sum over 77 positions, those of the emoji world over 32.

While adapters train, the model itself is what stage 1 left. What retention callbacks hold is held by both closed forms.

Cost per step: a UNet forward and backward, and a forward of the original for the masks; pictures ``2 steps`` forwards
each, at every start; closed forms none.
"""

from typing import Any, Literal

import torch
from torch import Tensor

from erasure_lightning.adapting import PerConceptErasure
from erasure_lightning.attention_masks import attention_inside, concept_mask
from erasure_lightning.backbones.base import CONCEPT, END, PADDING, Conditioning
from erasure_lightning.concepts import Batch, phrase
from erasure_lightning.errors import ErasureError
from erasure_lightning.functional import Regression, mix
from erasure_lightning.gallery import Gallery
from erasure_lightning.neighbours import sentences
from erasure_lightning.optimizers import Kind
from erasure_lightning.prompts import shared_rows, state_gram
from erasure_lightning.vocabulary import Vocabulary

#: What the pictures are asked for with.
SHOWN = {"thing": "a photo of a {}", "style": "a photo in the style of {}", "person": "a photo of {}"}


class MACE(PerConceptErasure):
    """Refines in closed form, suppresses attention in an adapter per concept, and fuses them.

    Args:
        refine: Begin with stage 1; without it adapters are trained on the original's weights.
        rank: Of each adapter, at least 1.
        pictures: Of each concept, drawn by the original to train on, at least 1; a ``bank`` stands in for them.
        steps: Their sampling steps, at least 1.
        guidance: Their scale of classifier-free guidance.
        times: Of the noise on them: by ``importance``, mostly 200 to 400 of 1000, or ``uniform``.
        mask: Share of the range of relevance from which a pixel shows the concept, 0..1; 0 for all, as for styles.
        preserve: ``s``, weight of each token state in captions of what is kept, in both closed forms, at least 0.
        ridge: ``lamb``, pull of both closed forms towards the weights they start from, above 0.
        lr: Highest learning rate.
        optimizer: As in every gradient method.
        kwargs: Arguments of every gradient method.

    Raises:
        ErasureError: If a number is out of range.
    """

    def __init__(
        self,
        *,
        refine: bool = True,
        rank: int = 1,
        pictures: int = 8,
        steps: int = 30,
        guidance: float = 7.5,
        times: Literal["importance", "uniform"] = "importance",
        mask: float = 0.5,
        preserve: float = 0.0,
        ridge: float = 1000.0,
        lr: float = 1e-5,
        optimizer: Kind = "adamw",
        **kwargs: Any,
    ) -> None:
        super().__init__(rank=rank, lr=lr, optimizer=optimizer, **kwargs)
        if min(rank, pictures, steps) < 1 or min(preserve, mask) < 0 or mask > 1 or ridge <= 0:
            raise ErasureError(
                "MACE needs rank, pictures and steps of at least 1, preserve of at least 0, mask in 0..1 and a ridge "
                f"above 0; found {rank}, {pictures}, {steps}, {preserve}, {mask} and {ridge}."
            )
        self.refine, self.mask, self.preserve, self.ridge = refine, mask, preserve, ridge
        self.pictures, self.steps, self.guidance, self.times = pictures, steps, guidance, times

    @torch.no_grad()
    def on_train_start(self) -> None:
        """Stage 1 and the pictures, which a resumed run repeats to the bit."""
        vocabulary = Vocabulary(self.backbone.world, self.concepts)
        self._asked = [sentences(concept, vocabulary) for concept in self.concepts]
        captions = [c for label in vocabulary.others for c in vocabulary.kept_captions(label)] if self.preserve else []
        self._kept = self.kept_gram() + self.preserve * state_gram(self.original, captions)
        self._old = torch.cat([layer.weight for layer in self.original.text_layers().values()])
        self._refined = self._old
        if self.refine:
            equations = Regression(self._kept)
            for batch in self._asked:
                equations.redirect(*shared_rows(self.original, batch))
            (self._refined,) = equations.solve([self._old], self.ridge)
        self.write_layers(self._refined)
        if self.bank is None:
            asked = [phrase(SHOWN[concept.kind], concept.name) for concept in self.concepts]
            prompts = [prompt for prompt in asked for _ in range(self.pictures)]
            drawn = Gallery(self.original, prompts, mix(self.seed, 8), steps=self.steps, guidance=self.guidance)
            self._clean = drawn.latents.reshape(-1, self.pictures, *drawn.latents.shape[1:])

    def noisy_latents(self, batch: Batch) -> tuple[Tensor, Tensor, Batch]:
        """The concepts' pictures, noised; moments of the bank where there is one."""
        if self.bank is not None:
            return super().noisy_latents(batch)
        clean = self._clean[self.numbers(batch), torch.randint(self.pictures, (len(batch.concepts),))]
        process = self.backbone.process
        weights = importance(process.times) if self.times == "importance" else torch.ones(process.times)
        t = torch.multinomial(weights, len(clean), replacement=True).to(clean.device)
        return process.noise(clean, torch.randn(clean.shape).to(clean), t), t, batch

    def erasure_loss(self, x: Tensor, t: Tensor, batch: Batch) -> Tensor:
        """Attention of the pixels that show a concept to its words, end and padding; mean over the batch."""
        words = self.original.embed(batch.prompts)
        asked, shown = self.original.encode(batch.prompts), words[0].positions(CONCEPT)
        masks = self.masks(x, t, asked, shown, batch)
        with self.adapted(batch), self.backbone.attention() as maps:
            self.backbone.denoise(x, t, asked)
        return attention_inside(maps, words[0].positions(CONCEPT, END, PADDING), masks).mean()

    @torch.no_grad()
    def masks(self, x: Tensor, t: Tensor, asked: Conditioning, shown: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Pixels where the original sees the concepts, all of them for styles, boolean ``(B, pixels)`` by layer.

        ``shown`` ``(B, L)`` is where the concepts' words stand in the sentences ``asked``.
        """
        with self.original.attention() as maps:
            self.original.denoise(x, t, asked)
        everywhere = torch.tensor([[self.concepts[i].kind == "style"] for i in self.numbers(batch)], device=x.device)
        found = concept_mask(maps, shown, self.mask)
        return {name: mask | everywhere for name, mask in found.items()}

    @torch.no_grad()
    def fused(self) -> Tensor:
        """Stage 3: the weights ``(out, D)`` that do on each concept's sentences what its adapter does there."""
        grams = (state_gram(self.original, batch.prompts) for batch in self._asked)
        return self.adapters.fused(self._refined, self._old, self._kept, grams, self.ridge)


def importance(times: int) -> Tensor:
    """``xi(t) = sigmoid(0.05 (t - 200)) - sigmoid(0.05 (t - 400))`` with ``t`` in 0..1000, ``(times,)``."""
    t = torch.arange(times) * 1000 / times
    return torch.sigmoid(0.05 * (t - 200)) - torch.sigmoid(0.05 * (t - 400))
