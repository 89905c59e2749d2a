"""SAGE: semantic-augment erasing (Zhu et al., arXiv 2506.09363).

Self-check searches for sentences around the concept's words that the trained text encoder still
encodes as the original does; self-erasure unlearns them, so that a concept *domain* is erased and
not a word. With ``E`` the encoder in training, ``E*`` the original, ``s`` an encoder's summary of a
prompt, and ``c`` and ``a`` the sentences of concept and anchor,

    self-check    ``c' = argmin over templates of 1 - cos( s(c'), s*(c) )``, from ``c`` outward
    self-erasure  ``( |E(c) - y(c)|^2 + |E(c') - y(c')|^2 ) / 2``
                  with ``y(c) = E*(a) - eta (E*(c) - E*(a))``

Retention is added by callbacks. An extension of ours, which the paper does not have: with
``domain_similarity`` every second self-check begins at a word, one of the tokenizer's or of a list,
for which the original *predicts* as for the concept (`domain_words`). A search around the concept's
words finds few of these.

An edit of the text encoder is bypassed by learned words (`ConceptInversion`) and by states that no
words produce (`SoftEmbedding`): the denoiser still has the concept. The edit of both, which is
ours, adds ``mse( eps(c'), eps*(a) - eta (eps*(c) - eps*(a)) )`` in the denoiser, at the
conditioning ``c'`` of an adversary.

Stated by the paper or its reviews: the alternation of self-check and self-erasure, the attack
``[tau_t, tau_c]`` on the template's word embeddings from the concept prompt outward, training of
the text encoder, no denoising of many steps. The exact losses are our reconstruction; the default
numbers are those of its nearest relative with code, AdvUnlearn. Of the retention callbacks in our
configs `LocalStatePreservation` and `UnconditionalDrift` are not the paper's.

Cost per step: ``check_steps + 2`` forwards and backwards of the text encoder on the concept
prompts, and one more forward, none of the denoiser (``erase_space="noise"``: 3 or 4 forwards and 1
or 2 backwards of it).
"""

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from erasure_lightning.backbones.base import Backbone
from erasure_lightning.backbones.conditioning import CONCEPT, Conditioning
from erasure_lightning.backbones.interface import Part
from erasure_lightning.checks import require
from erasure_lightning.concepts.concept import PromptBatch
from erasure_lightning.concepts.prompt_lists import read_prompt_list
from erasure_lightning.errors import ErasureError
from erasure_lightning.training.domain_words import domain_words
from erasure_lightning.training.gradient import GradientErasure
from erasure_lightning.training.latent_sources import NoisyBatch, anchor_conditioning
from erasure_lightning.training.prompt_states import (
    PromptEmbeddings,
    aligned_states,
    cosine_distance,
    gradient_ascent,
    masked_mean,
    with_random_template,
    with_template_of,
)

#: What is trained.
EditedPart = Literal[
    "text_encoder",
    "cross_attention",
    "text_entry",
    "joint_attention",
    "text_encoder+joint_attention",
]

#: Parts of the denoiser that each edit trains.
_PARTS: dict[EditedPart, tuple[Part, ...]] = {
    "text_encoder": (),
    "text_encoder+joint_attention": ("x", "entry"),
    "cross_attention": ("x-strict",),
    "text_entry": ("entry",),
    "joint_attention": ("x", "entry"),
}


class SAGE(GradientErasure):
    """Semantic-augment erasing: searches for prompts that still evoke a concept, and unlearns them.

    Args:
        train: What is trained: the ``text_encoder``, of every tower what the denoiser reads; or a
            part of the denoiser (needs ``erase_space`` noise): ``cross_attention``, keys and values
            of the text, ``text_entry``, what reads the prompt alone, or ``joint_attention``, all of
            the attention in which pixels meet text, with the entry; or both, for attacks that
            bypass the text encoder, by a loss on text states and one on predictions, which
            trains both.
        blocks: Number of the text encoder's last blocks that are trained, all if ``None``. Late
            blocks encode meaning: an edit there affects words of a similar meaning.
        check_steps: Gradient steps of the self-check, at least 0; 0 for none.
        check_size: Length of a step, in lengths of the vocabulary's median word embedding; 0.07 is
            about as far as AdvUnlearn's Adam of rate 1e-3 goes in the 768 coordinates of CLIP-L;
            above 0.
        check_from: First step with a self-check, at least 0.
        domain_similarity: Least similarity of the original's predictions for a word and for the
            concept, in 0..1, at which every second self-check begins with the word in the concept's
            place (`domain_words`); ``None`` for none, as in the paper.
        domain_candidates: Number of the tokenizer's words, and of the vocabulary's, whose
            predictions are compared, at least 1.
        vocabulary: Words that are mined with ``domain_similarity``, beside the tokenizer's own: a
            text file, one a line, or the name of a shipped list; ``None`` for none.
        check: What it maximises: ``cosine`` to the original's summary of the concept, ``margin`` of
            that over the anchor's, or (``outside_in``) similarity of noise predictions, from random
            words.
        erase_space: Space of the erasure loss: the text encoder's states or the denoiser's
            predictions.
        target_template: Template of the anchor's states: the ``plain`` one, also for what the
            self-check returned, or the one ``found`` by the self-check.
        eta: How far past the anchor the target lies, away from the concept; at least 0.
        denoiser_lr: Highest learning rate of the denoiser's part; ``lr`` by default.
        lr: Highest learning rate.
        kwargs: Arguments of `GradientErasure`.

    Raises:
        ErasureError: If a number is out of range, ``vocabulary`` cannot be read, or ``train`` and
            ``erase_space`` do not fit.
    """

    default_retention = ("GlobalSemanticAlignment", "LocalNoisePreservation")

    def __init__(
        self,
        *,
        train: EditedPart = "text_encoder",
        blocks: int | None = None,
        check_steps: int = 30,
        check_size: float = 0.07,
        check_from: int = 200,
        domain_similarity: float | None = None,
        domain_candidates: int = 300,
        vocabulary: str | None = "english",
        check: Literal["cosine", "margin", "outside_in"] = "cosine",
        erase_space: Literal["text", "noise"] = "text",
        target_template: Literal["plain", "found"] = "plain",
        eta: float = 0.0,
        denoiser_lr: float | None = None,
        lr: float = 1e-5,
        **kwargs: Any,
    ) -> None:
        super().__init__(lr=lr, **kwargs)
        require("SAGE", at_least=0, check_steps=check_steps, check_from=check_from, blocks=blocks)
        require("SAGE", at_least=0, eta=eta, denoiser_lr=denoiser_lr)
        require("SAGE", above=0, check_size=check_size)
        require("SAGE", above=0, at_most=1, domain_similarity=domain_similarity)
        require("SAGE", at_least=1, domain_candidates=domain_candidates)
        self.trained_part: EditedPart = train
        self.blocks = blocks
        self.check_steps = check_steps
        self.check_size = check_size
        self.check_from = check_from
        self.domain_similarity = domain_similarity
        self.domain_candidates = domain_candidates
        self.vocabulary = read_prompt_list(vocabulary, "SAGE") if vocabulary else []
        #: Words for which the original predicts as for each concept.
        self.domains: dict[str, list[str]] = {}
        self.check = check
        self.erase_space = erase_space
        self.target_template = target_template
        self.eta = eta
        self.denoiser_lr = lr if denoiser_lr is None else denoiser_lr
        self._check_spaces()

    def _check_spaces(self) -> None:
        """Raise where the erasure loss does not reach what is trained, or an adversary no loss."""
        if self.erase_space == "noise":
            return
        if self.adversary is not None and self.trained_part == "text_encoder":
            raise ErasureError(
                "SAGE with an adversary needs erase_space 'noise' or an edit of the denoiser too:"
                " its loss of text states is on no prediction."
            )
        if not self.trained_part.startswith("text_encoder"):
            raise ErasureError(
                f"SAGE with train {self.trained_part!r} needs erase_space 'noise'; it changes no"
                " text states."
            )

    def editable(self) -> dict[str, nn.Parameter]:
        """The text encoder's last blocks and final norm, or parts of the denoiser, or both."""
        named: dict[str, nn.Parameter] = {}
        if self.trained_part.startswith("text_encoder"):
            named |= self.backbone.text_parameters(self.blocks)
        for part in _PARTS[self.trained_part]:
            named |= self.backbone.denoiser_parameters(part)
        return named

    def learning_rates(self) -> dict[str, float]:
        """The denoiser's rate where both are trained."""
        rates = dict.fromkeys(self.trainable(), self.lr)
        denoiser = [name for name in rates if self.backbone.edits_denoiser([name])]
        return rates | dict.fromkeys(denoiser, self.denoiser_lr)

    def erasure_loss(self, batch: NoisyBatch) -> Tensor:
        """Self-erasure of the plain prompts and, from ``check_from`` on, of the self-check's."""
        in_text_space = self.erase_space == "text"
        anchor_prompts = (
            batch.anchor_prompts if in_text_space else batch.sentences.anchor_or_empty_prompts
        )
        anchor = self.backbone.embed(anchor_prompts)
        concept = self.backbone.embed(batch.prompts)
        variants = [concept]
        if self.check_steps and self.global_step >= self.check_from:
            start = self.backbone.embed(self.check_starts(batch.sentences).prompts)
            variants.append(self.self_check(start, batch, anchor))
        if in_text_space:
            target = self.original.encode(batch.anchor_prompts)
            losses = [self.text_erasure(prompts, anchor, target) for prompts in variants]
            erasure = torch.stack(losses).mean()
            return (
                erasure + self.denoiser_erasure(concept, batch)
                if _PARTS[self.trained_part]
                else erasure
            )
        noise_target = self._noise_target(concept, batch)
        losses = [self._noise_erasure(prompts, batch, noise_target) for prompts in variants]
        if self.adversary is not None:
            losses.append(self.denoiser_erasure(concept, batch))
        return torch.stack(losses).mean()

    def prepare(self) -> None:
        """Mine the concepts' domains, while the original's text encoders are on the device."""
        if self.domain_similarity is not None:
            mined = domain_words(
                self.original,
                self.concepts,
                self.domain_similarity,
                self.domain_candidates,
                self.vocabulary,
            )
            self.domains = {c.name: words for c, words in zip(self.concepts, mined, strict=True)}
        super().prepare()

    def description(self) -> dict[str, Any]:
        """Metadata of an edit, with the words of the concepts' domains."""
        return super().description() | ({"domain_words": self.domains} if self.domains else {})

    def check_starts(self, sentences: PromptBatch) -> PromptBatch:
        """Sentences at which self-checks begin: half with a word of the domain, if there is one."""
        words = []
        for name in sentences.concepts:
            domain = self.domains.get(name)
            if domain and torch.rand(()) < 0.5:
                words.append(domain[int(torch.randint(len(domain), ()))])
            else:
                words.append(name)
        return sentences._replace(concepts=words)

    def denoiser_erasure(self, concept: PromptEmbeddings, batch: NoisyBatch) -> Tensor:
        """``mse(eps(c), target)`` at the adversary's conditioning, or the concept's, a scalar."""
        target = self._noise_target(concept, batch)
        return self.prediction_error(self.student(batch), target, batch.t)

    def self_check(
        self,
        concept: PromptEmbeddings,
        batch: NoisyBatch,
        anchor: PromptEmbeddings | None = None,
    ) -> PromptEmbeddings:
        """Prompts, from the concept's outward, that the edited model encodes as the concept.

        Where it already encodes the concept as the original does, the template is unchanged.

        Args:
            concept: The concept's prompts, or those of words of its domain.
            batch: Noisy latents, used by ``outside_in`` alone.
            anchor: The anchor's prompts, used by ``margin`` alone.
        """
        outside_in = self.check == "outside_in"

        def meaning(backbone: Backbone, prompts: PromptEmbeddings) -> Tensor:
            if not outside_in:
                return backbone.summarize(prompts)
            return backbone.denoise(batch.x, batch.t, backbone.contextualize(prompts))

        anchor_meaning = None
        with torch.no_grad():
            concept_meaning = meaning(self.original, concept)
            if self.check == "margin" and anchor:
                anchor_meaning = self.original.summarize(anchor)
        tables = self.backbone.word_tables()
        start = concept
        if outside_in:
            start = tuple(
                with_random_template(prompts, table)
                for prompts, table in zip(concept, tables, strict=True)
            )
        sizes = tuple(self.check_size * table.norm(dim=1).median() for table in tables)

        def score(prompts: PromptEmbeddings) -> Tensor:
            return -self.check_loss(
                meaning(self.backbone, prompts), concept_meaning, anchor_meaning
            )

        return gradient_ascent(start, score, sizes, self.check_steps)

    def check_loss(self, meaning: Tensor, concept: Tensor, anchor: Tensor | None = None) -> Tensor:
        """``L_chk`` ``(B,)``; 0 where a prompt is encoded as the original encodes the concept.

        Two readings of the paper's words: ``1 - cos(s, s*(c))``, by ``margin`` plus
        ``cos(s, s*(a))``, or the mean squared difference of noise predictions.
        """
        if self.check == "outside_in":
            return (meaning - concept).square().flatten(1).mean(dim=1)
        loss = cosine_distance(meaning, concept)
        return loss + (0 if anchor is None else 1 - cosine_distance(meaning, anchor))

    @torch.no_grad()
    def _noise_target(self, concept: PromptEmbeddings, batch: NoisyBatch) -> Tensor:
        """``eps*(c_a) - eta (eps*(c_e) - eps*(c_a))``; ESD's without anchor and at eta 1."""
        original = self.original
        anchor_states = anchor_conditioning(original, batch.sentences)
        anchor_prediction = original.denoise(batch.x, batch.t, anchor_states)
        concept_states = original.contextualize(concept)
        concept_prediction = original.denoise(batch.x, batch.t, concept_states)
        return anchor_prediction - self.eta * (concept_prediction - anchor_prediction)

    def _noise_erasure(
        self, prompts: PromptEmbeddings, batch: NoisyBatch, target: Tensor
    ) -> Tensor:
        """``L_ers`` in noise space, a scalar: ``mse(eps(c), target)``."""
        prediction = self.student(batch, self.backbone.contextualize(prompts))
        return self.prediction_error(prediction, target, batch.t)

    def text_erasure(
        self, prompts: PromptEmbeddings, anchor: PromptEmbeddings, target: Conditioning
    ) -> Tensor:
        """``L_ers`` in text space, a scalar.

        The mean over states of the concept's words, plus that over all other states that depend on
        them (after them in CLIP, all in T5), plus the pooled vector's where the family has one.

        Args:
            prompts: The concept's prompts, plain or from the self-check.
            anchor: The anchor's plain prompts.
            target: ``y_a`` ``(B, L, D)``, the original's states of them, from which the target
                ``y_a - eta (y_c - y_a)`` is computed.
        """
        if self.target_template == "found":
            anchor = tuple(with_template_of(a, c) for a, c in zip(anchor, prompts, strict=True))
            with torch.no_grad():
                target = self.original.contextualize(anchor)
        states = self.backbone.contextualize(prompts)
        tokens = aligned_states(target, like=states)
        tokens, pooled = self._past_anchor(tokens, target.pooled, prompts)
        errors = (states.tokens - tokens).square().mean(dim=2)
        loss = masked_mean(errors, states.positions(CONCEPT))
        loss = loss + masked_mean(errors, states.around_concept())
        if states.pooled is None or pooled is None:
            return loss
        return loss + mse_loss(states.pooled, pooled)

    @torch.no_grad()
    def _past_anchor(
        self, tokens: Tensor, pooled: Tensor | None, prompts: PromptEmbeddings
    ) -> tuple[Tensor, Tensor | None]:
        """``y_a - eta (y_c - y_a)`` of the anchor's states, tokens and pooled vector."""
        if not self.eta:
            return tokens, pooled
        concept = self.original.contextualize(prompts)
        tokens = tokens - self.eta * (concept.tokens - tokens)
        if pooled is None or concept.pooled is None:
            return tokens, None
        return tokens, pooled - self.eta * (concept.pooled - pooled)
