"""MACE: mass concept erasure (Lu et al., CVPR 2024, arXiv 2403.06135).

(1) Closed-form refinement: in all text layers the words around a concept, end and padding come out
as they would around its anchor; the concept's own tokens are in no term. (2) An adapter per concept
is trained on those weights until pixels that show the concept no longer attend to its tokens. (3) A
second closed form fuses them: on concept ``i``'s sentences one set of weights does what ``W_cfr +
dW_i`` did.

Official code: Shilin-LU/MACE @ 057e7a6. Verified there: token alignment, sums (not means) over
sentences and rows, both systems, loss, latents, initial ``A`` and ``B``. Different here:
preservation has its weight in stage 1 once (there
twice: 1e-8 for 1e-4); masks are the original's attention, there Grounded-SAM's; ten sentences for
    thirty; batches mix
concepts, each row in its own adapter; float64. Defaults are its numbers for a thing and SD 1.4:
ridge 1000, preserve 0, AdamW 1e-5 (constant, decay 0.01); 50 steps a concept (``data.rounds``),
gradients clipped to 1. For people, styles and explicit content it has ridge 0, 1e-4, preserve 1e-4
on COCO's captions, and beside them captions of the domain (celebrities, artists) at 8e3 to 2e5. Its
Gram matrices sum over 77 positions, those of the emoji world over 32.

While adapters train, the model itself is what stage 1 left. What retention callbacks hold is held
by both closed forms.

Cost per step: a UNet forward and backward, and a forward of the original for the masks; pictures
``2 steps`` forwards each, at every start; closed forms none.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from erasure_lightning.backbones.conditioning import CONCEPT, END, PADDING, Conditioning
from erasure_lightning.concepts.concept import PromptBatch
from erasure_lightning.concepts.vocabulary import Vocabulary
from erasure_lightning.errors import ErasureError
from erasure_lightning.seeding import derive_seed
from erasure_lightning.training.adapter_methods import PerConceptErasure
from erasure_lightning.training.attention_masks import attention_inside, concept_mask
from erasure_lightning.training.image_sources import GeneratedImages
from erasure_lightning.training.latent_sources import LatentSource, Models, NoisyBatch
from erasure_lightning.training.neighbours import sentences
from erasure_lightning.training.optimizers import Kind
from erasure_lightning.training.prompt_states import input_gram, shared_rows
from erasure_lightning.training.regression import Regression

#: Sentences of the images.
SHOWN = {
    "thing": "a photo of a {}",
    "style": "a photo in the style of {}",
    "person": "a photo of {}",
}


class MACE(PerConceptErasure):
    """Refines in closed form, suppresses attention in an adapter per concept, and fuses them.

    Args:
        refine: Begin with stage 1; without it adapters are trained on the original's weights.
        rank: Of each adapter, at least 1.
        mask: Share of the range of relevance from which a pixel shows the concept, 0..1; 0 for all,
            as for styles.
        preserve: ``s``, weight of each token state in captions of what is kept, in both closed
            forms, at least 0.
        ridge: ``lamb``, pull of both closed forms towards the weights they start from, above 0.
        lr: Highest learning rate.
        optimizer: As in every gradient method.
        kwargs: Arguments of every gradient method.

    Raises:
        ErasureError: If a number is out of range.
    """

    needs = frozenset({"attention maps"})

    default_steps = 50

    def __init__(
        self,
        *,
        refine: bool = True,
        rank: int = 1,
        mask: float = 0.5,
        preserve: float = 0.0,
        ridge: float = 1000.0,
        lr: float = 1e-5,
        optimizer: Kind = "adamw",
        **kwargs: Any,
    ) -> None:
        super().__init__(rank=rank, lr=lr, optimizer=optimizer, **kwargs)
        if rank < 1 or min(preserve, mask) < 0 or mask > 1 or ridge <= 0:
            raise ErasureError(
                "MACE needs rank of at least 1, preserve of at least 0, mask in 0..1 and a ridge"
                f" above 0; found {rank}, {preserve}, {mask} and {ridge}."
            )
        self.refine = refine
        self.mask = mask
        self.preserve = preserve
        self.ridge = ridge

    def default_latents(self) -> LatentSource:
        """Eight images of each concept, noised at times by importance, as in the official code."""
        return GeneratedImages(images=8, steps=30, guidance=7.5, times="importance")

    def models(self) -> Models:
        """Images show the concepts alone; every rank has the same."""
        return replace(super().models(), sentences=self._shown, seed=derive_seed(self.seed, 8))

    def _shown(self, count: int, number: int) -> PromptBatch:
        """``count`` sentences that show the concepts, as many of each as of every other."""
        rows = [i * len(self.concepts) // count for i in range(count)]
        chosen = [self.concepts[row] for row in rows]
        templates, names = [SHOWN[c.kind] for c in chosen], [c.name for c in chosen]
        return PromptBatch(templates, names, [c.anchor for c in chosen], rows)

    @torch.no_grad()
    def on_train_start(self) -> None:
        """Stage 1 and the images, which a resumed run repeats to the bit."""
        vocabulary, read = (
            Vocabulary(self.backbone.world, self.concepts),
            self.original.text_inputs()[0],
        )
        self._concept_sentences = [sentences(c, vocabulary, i) for i, c in enumerate(self.concepts)]
        captions = (
            [c for label in vocabulary.others for c in vocabulary.retained_captions(label)]
            if self.preserve
            else []
        )
        self._kept = self.retention_gram(read) + self.preserve * input_gram(
            self.original, captions, read
        )
        self._old = torch.cat(read.weights())
        self._refined = self._old
        if self.refine:
            equations = Regression(self._kept)
            for batch in self._concept_sentences:
                equations.redirect(*shared_rows(self.original, batch, read))
            (self._refined,) = equations.solve([self._old], self.ridge)
        self.write_layers(self._refined)
        super().on_train_start()

    def noisy_batch(self, sentences: PromptBatch) -> NoisyBatch:
        """Images of the concepts, noised, for the step's own sentences; trajectories have sentences
        of their own.
        """
        batch = super().noisy_batch(sentences)
        return (
            batch.with_sentences(sentences) if isinstance(self.latents, GeneratedImages) else batch
        )

    def erasure_loss(self, batch: NoisyBatch) -> Tensor:
        """Attention of the pixels that show a concept to its words, end and padding; mean over the
        batch.
        """
        prompts = self.original.encode(batch.prompts)
        masks = self.masks(batch, prompts)
        with self.adapted(batch), self.backbone.attention() as maps:
            self.backbone.denoise(batch.x, batch.t, prompts)
        return attention_inside(maps, prompts.positions(CONCEPT, END, PADDING), masks).mean()

    @torch.no_grad()
    def masks(self, batch: NoisyBatch, prompts: Conditioning) -> dict[str, Tensor]:
        """Pixels where the original sees the concepts, all of them for styles, boolean ``(B,
        pixels)`` by layer.
        """
        with self.original.attention() as maps:
            self.original.denoise(batch.x, batch.t, prompts)
        styles = [[self.concepts[i].kind == "style"] for i in batch.indices]
        everywhere = torch.tensor(styles, device=batch.x.device)
        found = concept_mask(maps, prompts.positions(CONCEPT), self.mask)
        return {name: mask | everywhere for name, mask in found.items()}

    @torch.no_grad()
    def fused(self) -> Tensor:
        """Stage 3: the weights ``(out, D)`` that do on each concept's sentences what its adapter
        does there.
        """
        read = self.original.text_inputs()[0]
        grams = (
            input_gram(self.original, batch.prompts, read) for batch in self._concept_sentences
        )
        return self.adapters.fused(self._refined, self._old, self._kept, grams, self.ridge)
