"""SPM: one-dimensional adapters, one a concept, that open for prompts near their concept.

Lyu et al., One-dimensional Adapter to Rule Them All: Concepts, Diffusion Models and Erasing
Applications, arXiv 2312.16145. Official code Con6924/SPM @ 3dd762e. Verified in code, all
predictions without guidance at ``(x_t, t)``:

    ``L = mse( eps(c), eps*(n) - g (eps*(c) - eps*(n)) ) + lambda mse( eps(a), eps*(a) )``

with ``n`` the concept's anchor, or the empty prompt. Latent anchoring is the second term: ``a`` has
the shape of a prompt's states, a direction of Gaussian noise and the length of the concept's states
times ``U[0.8, 1.2]``, drawn anew each step. (The code also refuses a draw with a probability equal
to its cosine with the concept; in so many dimensions that never happens, and is left out.) Adapters
stand beside every linear layer and convolution of the transformers. How far they open is
`adapters.semi_permeable.Membrane`: facilitated transport.

Where the official code has bugs and ours is what the paper means: half of its anchors are empty
prompts, and two of four random ones cost an evaluation and are dropped, so that its runs spend half
of ``lambda`` on the empty prompt (as `UnconditionalDrift` can); gamma acts squared, and mixes
concepts; its latents are 32 to 42 times cleaner than their time says. Ours are the bank's. There
they lie on the student's rollout of the concept (30 steps, guidance 3), which the bank gives with
``student: true`` and a ``refresh``; a student is rolled out as it is used, with the membrane. On
the original's rollouts, the choice of our config, its predictions are kept.

Each concept trains its own adapters, alone and fully open, as if it had a run to itself; all are
stacked in one tensor a layer, and share a run's steps. Official, and the defaults: AdamW at 1e-4
for SD 1.4, ``lambda`` 1000, 4 anchors at batch 1, 500 steps of warm-up and three cosines (here one)
in 3000 steps, transport by the cosine as it is. On the emoji world anchors weigh a hundredth, in 60
steps, and transport is ``rescaled``, which is ours.

Cost of a sentence: ``1 + anchors`` forwards and backwards, ``anchors`` forwards of the original.
"""

from dataclasses import replace
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss, one_hot

from erasure_lightning.adapters.base import CHILD, Plan
from erasure_lightning.adapters.semi_permeable import Membrane
from erasure_lightning.backbones.conditioning import CONCEPT, Conditioning
from erasure_lightning.concepts.concept import Phrase, fill_template
from erasure_lightning.errors import ErasureError
from erasure_lightning.training.adapter_methods import AdapterErasure
from erasure_lightning.training.latent_sources import NoisyBatch
from erasure_lightning.training.optimizers import Kind, Schedule

#: Sentences a membrane knows its concept by, and how many foreign words it is shown in each.
SENTENCES, FOILS = ("{}", "a {}", "a photo of {}", "an image of {}"), 32


class SPM(AdapterErasure):
    """Semi-permeable membranes: what is near a concept is turned away from it, all else passes.

    Args:
        guidance: ``g``, how far the target lies past the anchor, away from the concept; at least 0.
        anchors: Latent anchors a sentence of the batch.
        anchor_weight: ``lambda``, at least 0.
        templates: Sentences with ``{}`` by which a membrane knows its concept; `SENTENCES` by
            default.
        transport: How far adapters open for a prompt: ``rescaled`` from the similarity of foreign
            words, ``cosine`` as it is (official), or ``none``, fully for every prompt.
        lr: Highest learning rate.
        warmup: Steps to reach it.
        schedule: As in every gradient method.
        optimizer: As in every gradient method.
        kwargs: Arguments of every gradient method.

    Raises:
        ErasureError: If a number is negative, or a template has no place for the words.
    """

    needs = frozenset({"transformer layers"})

    default_steps = 3000

    def __init__(
        self,
        *,
        guidance: float = 1.0,
        anchors: int = 4,
        anchor_weight: float = 1000.0,
        templates: list[str] | None = None,
        transport: Literal["rescaled", "cosine", "none"] = "cosine",
        lr: float = 1e-4,
        warmup: int = 500,
        schedule: Schedule = "cosine",
        optimizer: Kind = "adamw",
        **kwargs: Any,
    ) -> None:
        super().__init__(lr=lr, warmup=warmup, schedule=schedule, optimizer=optimizer, **kwargs)
        for name, value in {
            "guidance": guidance,
            "anchors": anchors,
            "anchor_weight": anchor_weight,
        }.items():
            if value < 0:
                raise ErasureError(f"SPM needs {name} of at least 0; found {value}.")
        if bad := [t for t in templates or () if "{}" not in t]:
            raise ErasureError(
                f"SPM needs {{}} in every template for the concept's words; found {bad[0]!r}."
            )
        self.guidance, self.anchors, self.anchor_weight = guidance, anchors, anchor_weight
        self.templates, self.transport = templates or [*SENTENCES], transport

    def plan(self) -> Plan:
        """One adapter beside each layer of the transformers, and a membrane that holds the
        concepts' sentences.
        """
        sentences = [s for concept in self.concepts for s in self._sentences(concept.name)]
        states = self.backbone.encode(sentences)
        words = int(states.positions(CONCEPT).sum(dim=1).max())
        length, width = states.tokens.shape[1:]
        sizes = {"concepts": len(self.concepts), "sentences": len(self.templates), "words": words}
        layers = [
            name.removeprefix("denoiser.") for name in self.backbone.adaptable("transformer layers")
        ]
        return Plan(
            "spm",
            layers,
            sizes | {"length": length, "width": width, "transport": self.transport != "none"},
        )

    @property
    def membrane(self) -> Membrane:
        """What decides how far the adapters open."""
        return cast(Membrane, getattr(self.backbone.denoiser, CHILD))

    def trainable(self) -> dict[str, nn.Parameter]:
        """The adapters; what the membrane remembers stays."""
        return {name: p for name, p in self.editable().items() if name.endswith((".down", ".up"))}

    @torch.no_grad()
    def adapt(self) -> None:
        """Put the adapters in, and tell the membrane what the concepts are and what is none."""
        super().adapt()
        if self.membrane.words.is_meta:  # this rank is given what another one finds
            return
        for number, concept in enumerate(self.concepts):
            states = self.backbone.encode(self._sentences(concept.name))
            self.membrane.remember(number, states.tokens, states.positions(CONCEPT))
        if self.transport == "rescaled":
            seen = self.membrane.similarities(self._foreign())
            seen = seen.reshape(2, FOILS, len(self.templates), *seen.shape[2:])
            self.membrane.unrelated.copy_(seen.diagonal(dim1=2, dim2=4).quantile(0.95, dim=1))

    def _sentences(self, words: str) -> list[Phrase]:
        return [fill_template(template, words) for template in self.templates]

    def _foreign(self) -> Tensor:
        """States of the sentences with random words of the vocabulary, ``(FOILS * J, L, D)``."""
        prompts = self.backbone.embed(self._sentences("x") * FOILS)
        foils = []
        for embedded, table in zip(prompts, self.backbone.word_tables(), strict=True):
            words = table[torch.randint(len(table), embedded.ids.shape)]
            where = embedded.positions(CONCEPT).unsqueeze(2)
            foils.append(
                replace(embedded, embeddings=torch.where(where, words, embedded.embeddings))
            )
        return self.backbone.contextualize(foils).tokens

    def erasure_loss(self, batch: NoisyBatch) -> Tensor:
        """The concept's prediction, and the anchors', in one evaluation of the adapters of each
        sentence's concept.
        """
        teacher, prompts, count = batch.teacher, self.backbone.encode(batch.prompts), len(batch)
        target = teacher.anchor - self.guidance * (teacher.concept - teacher.anchor)
        every = [prompts, self.latent_anchors(prompts)] if self.anchors else [prompts]
        copies = 1 + self.anchors
        x, t = batch.x.repeat(copies, 1, 1, 1), batch.t.repeat(copies)
        own = one_hot(torch.tensor(batch.indices, device=self.device), len(self.concepts))
        with self.membrane.held(own.repeat(copies, 1)):
            now = self.backbone.denoise(x, t, Conditioning.cat(every))
        erasure = mse_loss(now[:count], target)
        if not self.anchors:
            return erasure
        with torch.no_grad():
            kept = self.original.denoise(x[count:], t[count:], every[1])
        return erasure + self.anchor_weight * mse_loss(now[count:], kept)

    def latent_anchors(self, prompts: Conditioning) -> Conditioning:
        """Random states about as long as the concepts' ``(B, L, D)``, so many of each, ``(anchors *
        B, L, D)``.

        The pooled vector, where the family has one, is as random.
        """
        like = prompts.repeat(self.anchors)
        tokens = _random_like(like.tokens)
        return replace(
            like, tokens=tokens, pooled=None if like.pooled is None else _random_like(like.pooled)
        )


def _random_like(states: Tensor) -> Tensor:
    """A random direction for each of a batch, as long as its states times ``U[0.8, 1.2]``."""
    noise, stretched = torch.randn_like(states), 0.8 + 0.4 * torch.rand(len(states)).to(states)
    lengths = states.flatten(1).norm(dim=1) / noise.flatten(1).norm(dim=1)
    scaled: Tensor = noise * (stretched * lengths).view(-1, *[1] * (states.dim() - 1))
    return scaled
