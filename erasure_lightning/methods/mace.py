"""MACE: mass concept erasure (Lu et al., CVPR 2024, arXiv 2403.06135).

Three stages, on the text layers ``W`` with originals ``W*``:

    (1) ``W' = argmin sum_k |W k - W* a|^2 + s sum_p |(W - W*) p|^2 + lamb |W - W*|^2``
    (2) ``min over dW_i of sum_layers |A_l[pixels of concept i, its tokens]|_F``
    (3) ``W = argmin sum_i sum_k |(W - W' - dW_i) k|^2 + s sum_p |(W - W*) p|^2 + lamb |W - W'|^2``

(1) Closed-form refinement: the words around a concept ``k``, end and padding are mapped to where
``W*`` maps them around its anchor, ``a``; the concept's own tokens are in no term. (2) An adapter
per concept, ``dW_i``, is trained on ``W'``, so that pixels that show the concept do not attend to
its tokens, end and padding. (3) A second closed form fuses them: on the sentences of concept ``i``
one set of weights maps as ``W' + dW_i`` does.

Official code: Shilin-LU/MACE @ 057e7a6. Verified there: token alignment, sums (not means) over
sentences and rows, both systems, loss, latents, initial ``A`` and ``B``.

Where ours differs: preservation has its weight in stage 1 once (twice in the official code: 1e-8
for 1e-4); masks come from the original's attention, and not from Grounded-SAM; ten sentences, not
thirty, so that the same ridge weighs three times as much; batches mix concepts, each row with its
own adapter; float64.

Defaults are its numbers for a thing and SD 1.4: ridge 1000, preserve_scale 0, AdamW 1e-5 (constant,
decay 0.01); 50 steps a concept (``data.steps_per_concept``), gradients clipped to 1. For people and
styles it has ridge 0, 1e-4, preserve_scale 1e-4, and also captions of the domain (celebrities,
artists) at 8e3 to 2e5; for explicit content ridge 0, 1e-5, 120 steps, preserve_scale 7e-7 and
uniform times. Its preserve_scale weighs a sum over all captions of COCO 2014, about 617,000
(``src/cache_coco.py``), ours one over 240 or 400 captions of 80 things: what weighs 1e-4 there
weighs 0.26 or 0.15 here. Its Gram matrices sum over 77 positions, those of the emoji world over 32.

While adapters are trained, the weights themselves are those of stage 1. Both closed forms retain
what retention callbacks retain.

Where a pooled vector is read too, stage 1 also maps it to the anchor's, in every sentence; adapters
and stage 3 are of the layers that read tokens. On SD 3 and FLUX these are the text's entry, and
``A_l`` the attention of pixels to tokens in joint attention. The official code has SD 1.x alone.

Cost per step: a UNet forward and backward, and a forward of the original for the masks; images cost
``2 steps`` forwards each, at every start; closed forms none.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from erasure_lightning.backbones.conditioning import CONCEPT, END, PADDING, Conditioning
from erasure_lightning.backbones.interface import TextInput
from erasure_lightning.checks import require
from erasure_lightning.concepts.concept import PromptBatch
from erasure_lightning.concepts.vocabulary import Vocabulary
from erasure_lightning.seeding import derive_seed
from erasure_lightning.training.attention_masks import attention_inside, concept_mask
from erasure_lightning.training.image_sources import GeneratedImages
from erasure_lightning.training.input_grams import input_gram
from erasure_lightning.training.latent_sources import LatentSource, NoisyBatch, SourceModels
from erasure_lightning.training.optimizers import OptimizerName
from erasure_lightning.training.per_concept_erasure import PerConceptErasure
from erasure_lightning.training.prompt_states import shared_token_states
from erasure_lightning.training.regression import Regression

#: Sentence of the images of each kind of concept.
_IMAGE_TEMPLATES = {
    "thing": "a photo of a {}",
    "style": "a photo in the style of {}",
    "person": "a photo of {}",
    "action": "a photo of a person {}",
}


class MACE(PerConceptErasure):
    """Refines in closed form, suppresses attention in an adapter per concept, and fuses them.

    Args:
        refine: Start with stage 1; without it adapters are trained on the original's weights.
        rank: Rank of each adapter, at least 1.
        mask: Share of the range of relevance from which a pixel shows the concept, 0..1; 0 for all,
            as for styles.
        preserve_scale: ``s``, weight of each token state in captions of what is retained, in both
            closed forms, at least 0.
        ridge: ``lamb``, pull of both closed forms towards the weights they start from, above 0.
        lr: Highest learning rate.
        optimizer: As in every gradient method.
        kwargs: Arguments of `GradientErasure`.

    Raises:
        ErasureError: If a number is out of range.
    """

    needs = frozenset({"attention maps"})

    takes_adversary = False

    default_steps = 50

    def __init__(
        self,
        *,
        refine: bool = True,
        rank: int = 1,
        mask: float = 0.5,
        preserve_scale: float = 0.0,
        ridge: float = 1000.0,
        lr: float = 1e-5,
        optimizer: OptimizerName = "adamw",
        **kwargs: Any,
    ) -> None:
        super().__init__(rank=rank, lr=lr, optimizer=optimizer, **kwargs)
        require("MACE", at_least=0, at_most=1, mask=mask)
        require("MACE", at_least=0, preserve_scale=preserve_scale)
        require("MACE", above=0, ridge=ridge)
        self.refine = refine
        self.mask = mask
        self.preserve_scale = preserve_scale
        self.ridge = ridge

    def default_latents(self) -> LatentSource:
        """Eight images of each concept, noised at times by importance, as in the official code."""
        return GeneratedImages(images=8, steps=30, guidance=7.5, times="importance")

    def models(self) -> SourceModels:
        """Images show the concepts alone; every rank has the same."""
        seed = derive_seed(self.seed, 8)
        return replace(super().models(), sentences=self._image_sentences, seed=seed)

    def _image_sentences(self, count: int, number: int) -> PromptBatch:
        """``count`` sentences that show the concepts, equally many of each."""
        indices = [i * len(self.concepts) // count for i in range(count)]
        concepts = [self.concepts[index] for index in indices]
        templates = [_IMAGE_TEMPLATES[concept.kind] for concept in concepts]
        names = [concept.name for concept in concepts]
        anchors = [concept.anchor for concept in concepts]
        return PromptBatch(templates, names, anchors, indices)

    def editable(self) -> dict[str, nn.Parameter]:
        """Weights of the text layers, and of whatever else stage 1 solves for."""
        others = self.backbone.text_inputs()[1:] if self.refine else []
        names = [f"{name}.weight" for source in others for name in source.layers]
        return super().editable() | {name: self.backbone.get_parameter(name) for name in names}

    @torch.no_grad()
    def on_train_start(self) -> None:
        """Stage 1 and the images, which a resumed run repeats to the bit."""
        self._concept_sentences = [
            self.prompts.sentences(index) for index in range(len(self.concepts))
        ]
        source, *others = self.original.text_inputs()
        self._retained = self._retained_gram(source)
        self._original_weights = torch.cat(source.weights())
        self._refined = self._original_weights
        if self.refine:
            equations = self._refinement(source, self._retained)
            (self._refined,) = equations.solve([self._original_weights], self.ridge)
            for other in others:
                solved = self._refinement(other, self._retained_gram(other))
                self.write(other.named(solved.solve(other.weights(), self.ridge)))
        self.write_layers(self._refined)
        super().on_train_start()

    def _retained_gram(self, source: TextInput) -> Tensor:
        """``s sum_p p p^T`` of captions, and of what retention callbacks retain, ``(D, D)``."""
        vocabulary = Vocabulary(self.backbone.world, self.concepts)
        labels = vocabulary.others if self.preserve_scale else []
        captions = [caption for label in labels for caption in vocabulary.retained_captions(label)]
        preserved = self.preserve_scale * input_gram(self.original, captions, source)
        return self.retention_gram(source) + preserved

    def _refinement(self, source: TextInput, retained: Tensor) -> Regression:
        """The equations of stage 1 for the layers of one text input."""
        equations = Regression(retained)
        for batch in self._concept_sentences:
            equations.redirect(*shared_token_states(self.original, batch, source))
        return equations

    def noisy_batch(self, sentences: PromptBatch) -> NoisyBatch:
        """Noised images of the concepts, for the step's own sentences.

        Trajectories, if a bank is the source, have sentences of their own.
        """
        batch = super().noisy_batch(sentences)
        if isinstance(self.latents, GeneratedImages):
            return batch.with_sentences(sentences)
        return batch

    def erasure_loss(self, batch: NoisyBatch) -> Tensor:
        """Attention of pixels that show a concept to its words, end and padding, a scalar."""
        prompts = self.original.encode(batch.prompts)
        masks = self.masks(batch, prompts)
        with self.adapted(batch), self.backbone.attention() as maps:
            self.backbone.denoise(batch.x, batch.t, prompts)
        return attention_inside(maps, prompts.positions(CONCEPT, END, PADDING), masks).mean()

    @torch.no_grad()
    def masks(self, batch: NoisyBatch, prompts: Conditioning) -> dict[str, Tensor]:
        """Pixels that show the concepts, by the original's attention, ``(B, pixels)`` by layer.

        Of styles all pixels.
        """
        with self.original.attention() as maps:
            self.original.denoise(batch.x, batch.t, prompts)
        styles = [[self.concepts[index].kind == "style"] for index in batch.indices]
        is_style = torch.tensor(styles, device=batch.x.device)
        masks = concept_mask(maps, prompts.positions(CONCEPT), self.mask)
        return {name: mask | is_style for name, mask in masks.items()}

    @torch.no_grad()
    def fused(self) -> Tensor:
        """Stage 3: weights ``(out, D)`` with the change of each adapter on its own sentences."""
        source = self.original.text_inputs()[0]
        grams = (
            input_gram(self.original, batch.prompts, source) for batch in self._concept_sentences
        )
        return self.adapters.fused(
            self._refined, self._original_weights, self._retained, grams, self.ridge
        )
