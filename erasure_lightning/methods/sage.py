"""SAGE: semantic-augment erasing (Zhu et al., arXiv 2506.09363).

Self-check finds sentences around the concept's words that the trained text encoder still encodes as
the original does; self-erasure unlearns them, so that a concept *domain* goes and not a word.
Retention stands in callbacks.

Stated by the paper or its reviews: the alternation of self-check and self-erasure, the attack
``[tau_t, tau_c]`` on the template's word embeddings from the concept prompt outward, the text
encoder as what is trained, no denoising of many steps. The exact losses are our reconstruction;
numbers by default are those of its nearest relative with code, AdvUnlearn. Of the retention
callbacks in our configs `LocalStatePreservation` and `UnconditionalDrift` are not the paper's.

Cost per step: ``check_steps + 2`` forwards and backwards of the text encoder on the concept
prompts, and a forward more, none of the denoiser (``erase_space="noise"``: 3 or 4 forwards and 1 or
2 backwards of it).
"""

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from erasure_lightning.backbones.base import Backbone
from erasure_lightning.backbones.conditioning import CONCEPT, Conditioning
from erasure_lightning.errors import ErasureError
from erasure_lightning.training.gradient import GradientErasure
from erasure_lightning.training.latent_sources import NoisyBatch, alternatives
from erasure_lightning.training.prompt_states import (
    Prompts,
    aligned_states,
    cosine_distance,
    gradient_ascent,
    masked_mean,
    with_random_template,
    with_template_of,
)


class SAGE(GradientErasure):
    """Semantic-augment erasing: finds what still calls the concept, and unlearns that too.

    Args:
        edit: What is trained: the ``text_encoder``, or the ``cross_attention`` (needs
            ``erase_space`` noise).
        blocks: How many of the text encoder's last blocks are trained, all if ``None``. Late blocks
            hold meaning: an edit there reaches words that share the concept's.
        check_steps: Gradient steps of the self-check, 0 for none.
        check_size: Length of a step, in lengths of the vocabulary's median word embedding; 0.07 is
            about as far as AdvUnlearn's Adam of rate 1e-3 goes in the 768 coordinates of CLIP-L.
        check_from: First step with a self-check.
        check: What it maximises: ``cosine`` to the original's summary of the concept, ``margin`` of
            that over the anchor's, or (``outside_in``) closeness of noise predictions, from random
            words.
        erase_space: Where concept meets anchor: in the text encoder's states or the denoiser's
            predictions.
        target_template: Of the anchor's states: ``plain``, which pulls what was found all the way
            back, or ``found``.
        eta: How far past the anchor the target lies, away from the concept; at least 0.
        lr: Highest learning rate.
        kwargs: Arguments of every gradient method.
    """

    default_retention = ("GlobalSemanticAlignment", "LocalNoisePreservation")

    def __init__(
        self,
        *,
        edit: Literal["text_encoder", "cross_attention"] = "text_encoder",
        blocks: int | None = None,
        check_steps: int = 30,
        check_size: float = 0.07,
        check_from: int = 200,
        check: Literal["cosine", "margin", "outside_in"] = "cosine",
        erase_space: Literal["text", "noise"] = "text",
        target_template: Literal["plain", "found"] = "plain",
        eta: float = 0.0,
        lr: float = 1e-5,
        **kwargs: Any,
    ) -> None:
        super().__init__(lr=lr, **kwargs)
        if edit == "cross_attention" and erase_space == "text":
            raise ErasureError(
                "SAGE with edit 'cross_attention' needs erase_space 'noise'; text states stay as"
                " they are."
            )
        if check_steps < 0 or eta < 0 or (blocks is not None and blocks < 0):
            raise ErasureError(
                f"SAGE needs check_steps, eta, blocks of at least 0; found {check_steps}, {eta},"
                f" {blocks}."
            )
        self.edit, self.blocks = edit, blocks
        self.check, self.check_steps, self.check_size, self.check_from = (
            check,
            check_steps,
            check_size,
            check_from,
        )
        self.erase_space, self.target_template, self.eta = erase_space, target_template, eta

    def editable(self) -> dict[str, nn.Parameter]:
        """The text encoder's last blocks and final norm, or the text layers of the denoiser."""
        return (
            self.backbone.text_parameters(self.blocks)
            if self.edit == "text_encoder"
            else super().editable()
        )

    def erasure_loss(self, batch: NoisyBatch) -> Tensor:
        """Self-erasure of the plain prompts and, once it has begun, of what the self-check found."""
        text = self.erase_space == "text"
        anchor = self.backbone.embed(batch.targets if text else batch.sentences.alternatives)
        plain = self.backbone.embed(batch.prompts)
        prompts = [plain]
        if self.check_steps and self.global_step >= self.check_from:
            prompts.append(self.self_check(plain, batch, anchor))
        if text:
            target = self.original.encode(batch.targets)
            losses = [self.text_erasure(p, anchor, target) for p in prompts]
        else:
            noise = self._noise_target(plain, batch)
            losses = [
                mse_loss(self.student(batch, self.backbone.contextualize(p)), noise)
                for p in prompts
            ]
        return torch.stack(losses).mean()

    def self_check(
        self, plain: Prompts, batch: NoisyBatch, anchor: Prompts | None = None
    ) -> Prompts:
        """Templates, from the plain prompt outward, under which the edited model still means the
        concept.

        Where the model means what the original means, the template stays as it is.

        Args:
            plain: The concept prompts.
            batch: Noisy latents, read by ``outside_in`` alone.
            anchor: The anchor's prompts, read by ``margin`` alone.
        """
        outside = self.check == "outside_in"

        def meaning(backbone: Backbone, prompts: Prompts) -> Tensor:
            if not outside:
                return backbone.summarize(prompts)
            return backbone.denoise(batch.x, batch.t, backbone.contextualize(prompts))

        with torch.no_grad():
            concept = meaning(self.original, plain)
            other = self.original.summarize(anchor) if self.check == "margin" and anchor else None
        tables, start = self.backbone.word_tables(), plain
        if outside:
            start = tuple(
                with_random_template(e, table) for e, table in zip(plain, tables, strict=True)
            )
        sizes = tuple(self.check_size * table.norm(dim=1).median() for table in tables)

        def score(prompts: Prompts) -> Tensor:
            return -self.check_loss(meaning(self.backbone, prompts), concept, other)

        return gradient_ascent(start, score, sizes, self.check_steps)

    def check_loss(self, now: Tensor, concept: Tensor, anchor: Tensor | None = None) -> Tensor:
        """``L_chk`` ``(B,)``, two readings of the paper's words; 0 where the model means what the
        original meant.
        """
        if self.check == "outside_in":
            return (now - concept).square().flatten(1).mean(dim=1)
        return cosine_distance(now, concept) + (
            0 if anchor is None else 1 - cosine_distance(now, anchor)
        )

    @torch.no_grad()
    def _noise_target(self, plain: Prompts, batch: NoisyBatch) -> Tensor:
        """``eps*(c_a) - eta (eps*(c_e) - eps*(c_a))``, ``(B, C, h, w)``; without anchor and at eta
        1 that of ESD.
        """
        anchor = self.original.denoise(
            batch.x, batch.t, alternatives(self.original, batch.sentences)
        )
        concept = self.original.denoise(batch.x, batch.t, self.original.contextualize(plain))
        return anchor - self.eta * (concept - anchor)

    def text_erasure(self, prompts: Prompts, anchor: Prompts, target: Conditioning) -> Tensor:
        """``L_ers`` in text space, a scalar: states of the concept's words, and apart from them of
        all that follows.

        The pooled vector, where the family has one, is a third.

        Args:
            prompts: The concept's prompts, plain or as the self-check found them.
            anchor: The anchor's plain prompts.
            target: ``y_a`` ``(B, L, D)``, the original's states of them, from which the target
                ``y_a - eta (y_c - y_a)`` comes.
        """
        if self.target_template == "found":
            anchor = tuple(with_template_of(a, c) for a, c in zip(anchor, prompts, strict=True))
            with torch.no_grad():
                target = self.original.contextualize(anchor)
        now = self.backbone.contextualize(prompts)
        tokens, pooled = self._past(aligned_states(target, like=now), target.pooled, prompts)
        gap = (now.tokens - tokens).square().mean(dim=2)
        loss = masked_mean(gap, now.positions(CONCEPT)) + masked_mean(gap, now.behind_concept())
        return loss if now.pooled is None or pooled is None else loss + mse_loss(now.pooled, pooled)

    @torch.no_grad()
    def _past(
        self, tokens: Tensor, pooled: Tensor | None, prompts: Prompts
    ) -> tuple[Tensor, Tensor | None]:
        """``y_a - eta (y_c - y_a)`` of the anchor's states, tokens and pooled vector."""
        if not self.eta:
            return tokens, pooled
        concept = self.original.contextualize(prompts)
        tokens = tokens - self.eta * (concept.tokens - tokens)
        if pooled is None or concept.pooled is None:
            return tokens, None
        return tokens, pooled - self.eta * (concept.pooled - pooled)
