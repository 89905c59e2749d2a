"""SAGE: semantic-augment erasing (Zhu et al., arXiv 2506.09363).

Self-check finds sentences around the concept's words under which the trained text encoder still says what the original
said; self-erasure unlearns them, so that a concept *domain* goes and not a word. Retention stands in callbacks.

Stated by the paper or its reviews: the alternation of self-check and self-erasure, the attack
``[tau_t, tau_c]`` on the template's word embeddings from the concept prompt outward, the text encoder as what is
trained, no denoising of many steps. The exact losses are our reconstruction; numbers by default are those of its
nearest relative with code, AdvUnlearn. Of the retention callbacks in our configs `LocalStatePreservation` and
`UnconditionalDrift` are not the paper's.

Cost per step: ``check_steps + 2`` forwards and backwards of the text encoder on the concept prompts, and a
forward more, none of the denoiser (``erase_space="noise"``: 3 or 4 forwards and 1 or 2 backwards of it).
"""

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from erasure_lightning.backbones.base import CONCEPT, Backbone
from erasure_lightning.concepts import Batch
from erasure_lightning.errors import ErasureError
from erasure_lightning.functional import cosine_gap, row_mean
from erasure_lightning.module import GradientErasure
from erasure_lightning.prompts import Prompts, aligned_states, climb, with_random_template, with_template_of


class SAGE(GradientErasure):
    """Semantic-augment erasing: finds what still calls the concept, and unlearns that too.

    Args:
        edit: What is trained: the ``text_encoder``, or the ``cross_attention`` (needs ``erase_space`` noise).
        blocks: How many of the text encoder's last blocks are trained, all if ``None``. Late blocks hold meaning: an
            edit there reaches words that share the concept's.
        check_steps: Gradient steps of the self-check, 0 for none.
        check_size: Length of a step, in lengths of the vocabulary's median word embedding; 0.07 is about as far as
            AdvUnlearn's Adam of rate 1e-3 goes in the 768 coordinates of CLIP-L.
        check_from: First step with a self-check.
        check: What it climbs: ``cosine`` to what the original says of the concept, ``margin`` of that over the anchor,
            or (``outside_in``) closeness of noise predictions, from random words.
        erase_space: Where concept meets anchor: in the text encoder's states or the denoiser's predictions.
        target_template: Of the anchor's answer: ``plain``, which pulls what was found all the way back, or ``found``.
        eta: How far past the anchor the target lies, away from the concept; at least 0.
        lr: Highest learning rate.
        kwargs: Arguments of every gradient method.
    """

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
                "SAGE with edit 'cross_attention' needs erase_space 'noise'; text states stay as they are."
            )
        if check_steps < 0 or eta < 0 or (blocks is not None and blocks < 0):
            raise ErasureError(
                f"SAGE needs check_steps, eta, blocks of at least 0; found {check_steps}, {eta}, {blocks}."
            )
        self.edit, self.blocks = edit, blocks
        self.check, self.check_steps, self.check_size, self.check_from = check, check_steps, check_size, check_from
        self.erase_space, self.target_template, self.eta = erase_space, target_template, eta

    def editable(self) -> dict[str, nn.Parameter]:
        """The text encoder's last blocks and final norm, or the text layers of the denoiser."""
        return self.backbone.text_parameters(self.blocks) if self.edit == "text_encoder" else super().editable()

    def erasure_loss(self, x: Tensor, t: Tensor, batch: Batch) -> Tensor:
        """Self-erasure of the plain prompts and, once it has begun, of what the self-check found."""
        instead = batch.targets if self.erase_space == "text" else batch.alternatives
        plain, anchor = self.backbone.embed(batch.prompts), self.backbone.embed(instead)
        asked = [plain]
        if self.check_steps and self.global_step >= self.check_from:
            asked.append(self.self_check(plain, x, t, anchor))
        if self.erase_space == "text":
            answer = self.original.encode(batch.targets).tokens
            losses = [self.text_erasure(prompts, anchor, answer) for prompts in asked]
        else:
            wanted = self._noise_target(plain, anchor, x, t)
            losses = [mse_loss(self.backbone.denoise(x, t, self.backbone.contextualize(p)), wanted) for p in asked]
        return torch.stack(losses).mean()

    def self_check(self, plain: Prompts, x: Tensor, t: Tensor, anchor: Prompts | None = None) -> Prompts:
        """The template's words, from the plain prompt outward, at which the concept is said again.

        Where the model says what the original says, the template stays as it is.

        Args:
            plain: The concept prompts.
            x: Noisy latents ``(B, C, h, w)``, read by ``outside_in`` alone.
            t: Their times ``(B,)``.
            anchor: The anchor's prompts, read by ``margin`` alone.
        """
        outside = self.check == "outside_in"

        def say(backbone: Backbone, prompts: Prompts) -> Tensor:
            return backbone.denoise(x, t, backbone.contextualize(prompts)) if outside else backbone.summarize(prompts)

        with torch.no_grad():
            said = say(self.original, plain)
            instead = self.original.summarize(anchor) if self.check == "margin" and anchor else None
        tables, start = self.backbone.word_tables(), plain
        if outside:
            start = tuple(with_random_template(e, table) for e, table in zip(plain, tables, strict=True))
        sizes = tuple(self.check_size * table.norm(dim=1).median() for table in tables)
        return climb(start, lambda p: -self.check_loss(say(self.backbone, p), said, instead), sizes, self.check_steps)

    def check_loss(self, now: Tensor, said: Tensor, instead: Tensor | None = None) -> Tensor:
        """``L_chk`` ``(B,)``, two readings of the paper's words; 0 where the model says what the original said."""
        if self.check == "outside_in":
            return (now - said).square().flatten(1).mean(dim=1)
        return cosine_gap(now, said) + (0 if instead is None else 1 - cosine_gap(now, instead))

    @torch.no_grad()
    def _noise_target(self, plain: Prompts, anchor: Prompts, x: Tensor, t: Tensor) -> Tensor:
        """``eps*(c_a) - eta (eps*(c_e) - eps*(c_a))``, ``(B, C, h, w)``; without anchor and at eta 1 that of ESD."""
        instead, said = (self.original.denoise(x, t, self.original.contextualize(p)) for p in (anchor, plain))
        return instead - self.eta * (said - instead)

    def text_erasure(self, asked: Prompts, anchor: Prompts, answer: Tensor) -> Tensor:
        """``L_ers`` in text space, a scalar: states of the concept's words, and apart from them of all that follows.

        Args:
            asked: The concept's prompts, plain or as the self-check found them.
            anchor: The anchor's plain prompts.
            answer: ``y_a`` ``(B, L, D)``, what the original says of them, from which the target ``y_a - eta (y_c -
                y_a)`` comes.
        """
        with torch.no_grad():
            if self.target_template == "found":
                anchor = tuple(with_template_of(a, c) for a, c in zip(anchor, asked, strict=True))
                answer = self.original.contextualize(anchor).tokens
            wanted = aligned_states(answer, anchor, like=asked)
            if self.eta:
                wanted = wanted - self.eta * (self.original.contextualize(asked).tokens - wanted)
        gap = (self.backbone.contextualize(asked).tokens - wanted).square().mean(dim=2)
        behind = torch.arange(gap.shape[1], device=gap.device) >= asked[0].span()[:, 1:]
        return row_mean(gap, asked[0].positions(CONCEPT)) + row_mean(gap, behind)
