"""TRCE: maps a concept's end-of-text state in closed form, then steers early denoising steps.

Chen et al., TRCE: Towards Reliable Malicious Concept Erasure in Text-to-Image Diffusion Models,
arXiv 2503.07389. Official code ddgoodgood/TRCE @ 0da9b71, verified in code. Two stages: of the
text layers ``W`` with originals ``W*``, then of self-attention and cross-attention's queries, at
latents ``x_t`` of early steps, with ``e*(c) = eps*(c) + g (eps*(c) - eps*(0))`` of the original:

    (1) ``W = argmin mean_i |W k_i - W* a_i|^2 + s mean_j sum_p |(W - W*) p|^2``
    (2) ``L(c') = max(0, mse(eps(c'), e*(a)) - mse(eps(c'), e*(c)) + margin)``

(1) ``k_i`` is the end-of-text state of the concept's sentence ``i``, ``a_i`` that of its anchor's:
diffusion models draw most of a sentence's meaning from it. No other token is in a term
(``token_weight_scale: [0, 1, 0, 0]``); ``p`` are all states of captions ``j`` of what is retained.
(2) is the mean of ``L`` for the concept's prediction ``eps(c)`` and the unconditional ``eps(0)``:
both come nearer to the guided anchor than to the guided concept by the margin, and no further. The
unconditional prediction on trajectories without a prompt is retained with weight 100: that is
`UnconditionalDrift`, set in the config, at latents of noise.

Where the official code has a bug and ours differs: it never clears the gradients of stage 2, so
that Adam receives their running sum; a trajectory's latents are stored after the step whose time
they carry; the end of text is looked up by the number of words, which misses it after a word of
several tokens; ``preserve_scale`` multiplies the captions' Gram matrix twice, which makes its 0.01
(unsafe content: 0.02) our ``preserve_scale`` 1e-4. The two configs for unsafe content share a first
stage by mistake.

Where ours differs: a concept has ten templates, and not the first fifteen of the official code, nor
the one of its stage 2 ("a photo of {}"; unsafe content: "an image depicting {}"); captions of what
is retained and a small ridge take the place of a cached Gram matrix of COCO's, which is invertible
by itself; what retention callbacks retain is added to it. The official reference of the
unconditional prediction is the model after stage 1; ours is the original, which stage 1 retains
with the callback. An official concept is a list of up to 20 synonyms, each with its anchor: here
each is a concept. The official factor ``beta`` of (2) is 1.

Its numbers for SD 1.4: ``g`` 15, margin 0.01, the first 26 of 50 steps of the original's rollouts
at guidance 3, AdamW 1e-6 (constant), 3 epochs of 100 single latents (unsafe content: 300).

Cost of a step on a bank: 2 forwards and backwards, none of the original; stage 1 none.
"""

from typing import Any

import torch
from torch import Tensor, nn

from erasure_lightning.backbones.base import Backbone
from erasure_lightning.backbones.conditioning import END
from erasure_lightning.backbones.interface import TextInput
from erasure_lightning.checks import require
from erasure_lightning.concepts.concept import PromptBatch
from erasure_lightning.concepts.vocabulary import Vocabulary
from erasure_lightning.training.gradient import GradientErasure
from erasure_lightning.training.input_grams import input_gram
from erasure_lightning.training.latent_sources import NoisyBatch
from erasure_lightning.training.optimizers import OptimizerName
from erasure_lightning.training.regression import Regression
from erasure_lightning.training.text_regressions import solve_text_inputs
from erasure_lightning.training.trajectory_bank import TrajectoryBank


class TRCE(GradientErasure):
    """Edits the end-of-text state in closed form, then prefers the anchor at early steps.

    Args:
        closed_form: Start with stage 1; without it stage 2 starts from the original.
        preserve_scale: ``s``, weight of a caption of what is retained in stage 1, at least 0.
        ridge: Pull of stage 1 towards the original weights, above 0.
        guidance: ``g`` of both references, at least 0.
        margin: By how much the anchor's reference is nearer than the concept's where training
            stops, in mean squared error; at least 0.
        early: Share of a trajectory's steps that is trained, from the noisiest on; above 0 and at
            most 1. Sources other than a bank supply latents of any time.
        lr: Highest learning rate.
        optimizer: As in every gradient method.
        kwargs: Arguments of `GradientErasure`.

    Raises:
        ErasureError: If a number is out of range.
    """

    needs = frozenset({"cross-attention"})

    default_steps = 300

    def __init__(
        self,
        *,
        closed_form: bool = True,
        preserve_scale: float = 1e-4,
        ridge: float = 1e-3,
        guidance: float = 15.0,
        margin: float = 0.01,
        early: float = 0.52,
        lr: float = 1e-6,
        optimizer: OptimizerName = "adamw",
        **kwargs: Any,
    ) -> None:
        super().__init__(lr=lr, optimizer=optimizer, **kwargs)
        require("TRCE", at_least=0, preserve_scale=preserve_scale, guidance=guidance, margin=margin)
        require("TRCE", above=0, ridge=ridge)
        require("TRCE", above=0, at_most=1, early=early)
        self.closed_form = closed_form
        self.preserve_scale = preserve_scale
        self.ridge = ridge
        self.guidance = guidance
        self.margin = margin
        self.early = early

    def editable(self) -> dict[str, nn.Parameter]:
        """What is trained, and the text layers of stage 1."""
        inputs = self.backbone.text_inputs() if self.closed_form else []
        names = [f"{layer}.weight" for source in inputs for layer in source.layers]
        return {name: self.backbone.get_parameter(name) for name in names} | self.trainable()

    def trainable(self) -> dict[str, nn.Parameter]:
        """Self-attention, and the queries of cross-attention."""
        return self.backbone.denoiser_parameters("pixels")

    @torch.no_grad()
    def on_train_start(self) -> None:
        """Stage 1; a resumed run has it in its checkpoint."""
        super().on_train_start()
        if self.closed_form and not self.global_step:
            self.write(self.stage_1())

    def stage_1(self) -> dict[str, Tensor]:
        """New weights of every text input, by name: the minimiser of (1)."""
        return solve_text_inputs(self, self._fill, self.ridge)

    def _fill(self, equations: Regression, source: TextInput) -> None:
        """Adds the end-of-text states of every concept, and the captions of what is retained."""
        vocabulary = Vocabulary(self.original.world, self.concepts)
        batches = [self.prompts.sentences(index) for index in range(len(self.concepts))]
        count = sum(len(batch.concepts) for batch in batches)
        for batch in batches:
            concepts, anchors = end_states(self.original, batch, source)
            equations.redirect(concepts, anchors, 1 / count)
        captions = [c for label in vocabulary.others for c in vocabulary.retained_captions(label)]
        if self.preserve_scale and captions:
            gram = input_gram(self.original, captions, source)
            equations.hold(gram, self.preserve_scale / len(captions))

    def noisy_batch(self, sentences: PromptBatch) -> NoisyBatch:
        """Early steps of the concepts' trajectories, where a bank is the source."""
        batch = super().noisy_batch(sentences)
        if not isinstance(self.latents, TrajectoryBank) or batch.rows is None:
            return batch
        first_late = max(round(self.early * self.latents.length), 1)
        return self.latents.at(batch.rows, torch.randint(first_late, batch.t.shape), self.original)

    def erasure_loss(self, batch: NoisyBatch) -> Tensor:
        """``(L(c) + L(0)) / 2``, a scalar."""
        unconditional = self.student(batch, self.backbone.unconditional(len(batch)))
        losses = [self.margin_loss(batch, each) for each in (self.student(batch), unconditional)]
        return torch.stack(losses).mean()

    def margin_loss(self, batch: NoisyBatch, prediction: Tensor) -> Tensor:
        """``max(0, mse(eps, e*(a)) - mse(eps, e*(c)) + margin)``, of each latent, ``(B,)``."""
        teacher = batch.teacher
        preferred, rejected = (
            self.prediction_errors(
                prediction, each + self.guidance * (each - teacher.unconditional), batch.t
            )
            for each in (teacher.anchor, teacher.concept)
        )
        return (preferred - rejected + self.margin).clamp(min=0)


def end_states(backbone: Backbone, batch: PromptBatch, source: TextInput) -> tuple[Tensor, Tensor]:
    """Inputs at the end of text of the concepts' sentences and of their anchors', ``(N, D)`` both.

    Of a pooled vector the vector itself.

    Args:
        backbone: The model that encodes the sentences.
        batch: The sentences.
        source: The layers whose input is read.
    """
    concept = backbone.encode(batch.prompts)
    anchor = backbone.encode(batch.anchor_prompts)
    rows = source.rows(concept)
    anchor_rows = source.rows(anchor)
    if source.source == "pooled":
        return rows.flatten(0, 1), anchor_rows.flatten(0, 1)
    return rows[concept.positions(END)], anchor_rows[anchor.positions(END)]
