"""SPM: one-dimensional adapters of each concept, gated by a prompt's similarity to it.

Lyu et al., One-dimensional Adapter to Rule Them All: Concepts, Diffusion Models and Erasing
Applications, arXiv 2312.16145. Official code Con6924/SPM @ 3dd762e. Verified in code, all
predictions without guidance at ``(x_t, t)``:

    ``L = mse( eps(c), eps*(n) - eta (eps*(c) - eps*(n)) ) + lambda mse( eps(a), eps*(a) )``

with ``n`` the concept's anchor, or no prompt. Latent anchoring is the second term: ``a`` has the
shape of a prompt's states, a direction of Gaussian noise and the length of the concept's states
times ``U[0.8, 1.2]``, sampled at each step. (The code also rejects a sample with a probability
equal to its cosine with the concept; in so many dimensions that never happens, and is left out.)
Adapters are beside every linear layer and convolution of the transformers. Their gates are
facilitated transport, `adapters.semi_permeable.Membrane`.

Where the official code has bugs and ours is what the paper means: half of its anchors are empty
prompts, and two of four random ones cost an evaluation and are dropped, so that its runs spend half
of ``lambda`` on the empty prompt (as `UnconditionalDrift` can); gamma acts squared, and mixes
concepts; its latents are 32 to 42 times cleaner than their time. Ours are the bank's. The official
ones come from the student's rollout of the concept (30 steps, guidance 3), as ours do with
``student: true`` and a ``refresh`` of the bank; a student is rolled out with its membrane. On
the original's rollouts, the choice of our config, its predictions are cached.

Each concept trains its own adapters, alone and fully open, as if in a run of its own: the optimizer
leaves them as they are in steps without its sentences. All are stacked in one tensor a layer, and
share a run's schedule. Official, and the defaults: AdamW at 1e-4 for SD 1.4, ``lambda`` 1000, 4
anchors at batch 1, 500 steps of warm-up and three cosines (here one) in 3000 steps, transport by
the cosine as it is. Its latents are of random sides from 256 to 448 pixels (``dynamic_resolution``
in its configs); ours have the model's size. On the emoji world anchors weigh a hundredth, in 60
steps, and transport is ``rescaled``, which is ours.

Cost of a sentence: ``1 + anchors`` forwards and backwards, ``anchors`` forwards of the original.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from erasure_lightning.adapters.base import ADAPTER_CHILD, AdapterPlan
from erasure_lightning.adapters.semi_permeable import Membrane
from erasure_lightning.backbones.conditioning import CONCEPT, Conditioning
from erasure_lightning.checks import require
from erasure_lightning.concepts.concept import Phrase, fill_template, require_templates
from erasure_lightning.distributed.collectives import all_gather_items
from erasure_lightning.training.adapter_methods import AdapterErasure
from erasure_lightning.training.latent_sources import NoisyBatch
from erasure_lightning.training.optimizers import OptimizerName, Schedule
from erasure_lightning.training.prompt_words import random_words

#: Sentences of a concept that a membrane stores.
_SENTENCES = ("{}", "a {}", "a photo of {}", "an image of {}")

#: Random words in each sentence, for the similarity of unrelated words.
_RANDOM_WORDS = 32


class SPM(AdapterErasure):
    """Semi-permeable membranes: gated adapters that steer prompts near a concept away from it.

    Args:
        eta: ``eta``, how far the target lies past the anchor, away from the concept; at least 0.
        anchors: Number of latent anchors of each sentence in a batch, at least 0.
        anchor_weight: ``lambda``, at least 0.
        templates: Sentences with ``{}`` for the words (and ``{thing}`` for something retained),
            which a membrane compares prompts with; by default the bare words and three usual
            captions.
        transport: Gate of the adapters: the similarity ``rescaled`` by that of unrelated words, its
            ``cosine`` as it is (official), or ``none``, fully open for every prompt.
        lr: Highest learning rate.
        warmup: Steps over which the rate rises from 0.
        schedule: As in every gradient method.
        optimizer: As in every gradient method.
        kwargs: Arguments of `GradientErasure`.

    Raises:
        ErasureError: If a number is negative, or a template has no place for the words.
    """

    needs = frozenset({"transformer layers"})

    default_steps = 3000

    def __init__(
        self,
        *,
        eta: float = 1.0,
        anchors: int = 4,
        anchor_weight: float = 1000.0,
        templates: list[str] | None = None,
        transport: Literal["rescaled", "cosine", "none"] = "cosine",
        lr: float = 1e-4,
        warmup: int = 500,
        schedule: Schedule = "cosine",
        optimizer: OptimizerName = "adamw",
        **kwargs: Any,
    ) -> None:
        super().__init__(lr=lr, warmup=warmup, schedule=schedule, optimizer=optimizer, **kwargs)
        require("SPM", at_least=0, eta=eta, anchors=anchors, anchor_weight=anchor_weight)
        require_templates("SPM", templates or ())
        self.eta = eta
        self.anchors = anchors
        self.anchor_weight = anchor_weight
        self.templates = templates or [*_SENTENCES]
        self.transport = transport
        #: Each stacked factor, with the rows in its memory that the optimizer has in its place.
        self._rows: list[tuple[nn.Parameter, list[nn.Parameter]]] = []
        #: Concepts of the last batch's sentences, and of all since the last step.
        self._drawn: Sequence[int] = []
        self._present: set[int] = set()

    def plan(self) -> AdapterPlan:
        """One adapter for each layer of the transformers, and a membrane of all concepts."""
        sentences = [s for concept in self.concepts for s in self._sentences(concept.name)]
        states = self.backbone.encode(sentences)
        length, width = states.tokens.shape[1:]
        settings = {
            "concepts": len(self.concepts),
            "sentences": len(self.templates),
            "words": int(states.positions(CONCEPT).sum(dim=1).max()),
            "length": length,
            "width": width,
            "transport": self.transport != "none",
        }
        layers = [
            name.removeprefix("denoiser.") for name in self.backbone.adaptable("transformer layers")
        ]
        return AdapterPlan("spm", layers, settings)

    @property
    def membrane(self) -> Membrane:
        """The module that computes the adapters' gates."""
        return cast(Membrane, getattr(self.backbone.denoiser, ADAPTER_CHILD))

    def trainable(self) -> dict[str, nn.Parameter]:
        """The adapters' factors, without the membrane's states."""
        return {name: p for name, p in self.editable().items() if name.endswith((".down", ".up"))}

    @torch.no_grad()
    def adapt(self) -> None:
        """Installs the adapters, and stores the concepts' and unrelated states in the membrane."""
        super().adapt()
        if self.membrane.words.is_meta:  # this rank receives the values of another one
            return
        for number, concept in enumerate(self.concepts):
            states = self.backbone.encode(self._sentences(concept.name))
            self.membrane.store(number, states.tokens, states.positions(CONCEPT))
        if self.transport == "rescaled":
            similarities = self.membrane.similarities(self._unrelated_states())
            shape = (2, _RANDOM_WORDS, len(self.templates), *similarities.shape[2:])
            similarities = similarities.reshape(shape)
            same_sentence = similarities.diagonal(dim1=2, dim2=4)
            self.membrane.unrelated.copy_(same_sentence.quantile(0.95, dim=1))

    def configure_optimizers(self) -> Any:
        """The optimizer, which has of several concepts each one's rows as parameters of their own.

        With stacked factors Adam moves and decays the rows of concepts that a step has no sentence
        of; of ``n`` concepts, one a step, each moves about the root of ``n`` times too far.
        """
        configured = super().configure_optimizers()
        self._rows = []
        if len(self.concepts) == 1:
            return configured
        for group in configured["optimizer"].param_groups:
            stacked = group["params"]
            rows = [[nn.Parameter(row) for row in factor.detach()] for factor in stacked]
            self._rows += zip(stacked, rows, strict=True)
            group["params"] = [row for of_factor in rows for row in of_factor]
        return configured

    def optimizer_zero_grad(self, *args: Any, **kwargs: Any) -> None:
        """Clears the gradients of rows, and of the stacked factors."""
        super().optimizer_zero_grad(*args, **kwargs)
        for factor, _ in self._rows:
            factor.grad = None
        self._present = set()

    def on_after_backward(self) -> None:
        """Gives the rows of a step's concepts their gradients; others have none.

        Retention terms have gradients to all of them.
        """
        super().on_after_backward()
        if not self._rows:
            return
        everywhere = range(len(self.concepts))
        self._present.update(everywhere if self.retention else all_gather_items(self._drawn))
        for factor, rows in self._rows:
            for number, row in enumerate(rows):
                has_gradient = number in self._present and factor.grad is not None
                row.grad = cast(Tensor, factor.grad)[number] if has_gradient else None

    def _sentences(self, words: str) -> list[Phrase]:
        templates = self.prompts.with_things(self.templates)
        return [fill_template(template, words) for template in templates]

    def _unrelated_states(self) -> Tensor:
        """States of the ``J`` sentences with random words of the vocabulary, ``(32 J, L, D)``."""
        prompts = self.backbone.embed(self._sentences("x") * _RANDOM_WORDS)
        words = random_words(self.backbone, [tuple(each.ids.shape) for each in prompts])
        unrelated = [e.with_embeddings(w, CONCEPT) for e, w in zip(prompts, words, strict=True)]
        return self.backbone.contextualize(unrelated).tokens

    def erasure_loss(self, batch: NoisyBatch) -> Tensor:
        """``mse(eps(c), eps*(n) - eta (eps*(c) - eps*(n))) + lambda mse(eps(a), eps*(a))``.

        Concept and latent anchors are predicted in one forward, with the adapters of each
        sentence's concept alone.
        """
        self._drawn = batch.indices
        teacher = batch.teacher
        target = teacher.anchor - self.eta * (teacher.concept - teacher.anchor)
        count = len(batch)
        copies = 1 + self.anchors
        x = batch.x.repeat(copies, 1, 1, 1)
        t = batch.t.repeat(copies)
        conditioning = [self.concept_conditioning(batch)]
        if self.anchors:
            conditioning.append(self.latent_anchors(conditioning[0]))
        concepts = torch.tensor(batch.indices, device=self.device)
        own_adapters = one_hot(concepts, len(self.concepts)).repeat(copies, 1)
        with self.membrane.fixed(own_adapters):
            prediction = self.backbone.denoise(x, t, Conditioning.cat(conditioning))
        erasure = self.prediction_error(prediction[:count], target, batch.t)
        if not self.anchors:
            return erasure
        with torch.no_grad():
            anchor_target = self.original.denoise(x[count:], t[count:], conditioning[1])
        anchoring = self.prediction_error(prediction[count:], anchor_target, t[count:])
        return erasure + self.anchor_weight * anchoring

    def latent_anchors(self, prompts: Conditioning) -> Conditioning:
        """Random states about as long as the prompts', ``(anchors * B, L, D)``.

        The pooled vector, where the family has one, is random too.
        """
        repeated = prompts.repeat(self.anchors)
        tokens = _random_like(repeated.tokens)
        pooled = None if repeated.pooled is None else _random_like(repeated.pooled)
        return replace(repeated, tokens=tokens, pooled=pooled)


def _random_like(states: Tensor) -> Tensor:
    """Random directions, each as long as the states of its row times ``U[0.8, 1.2]``.

    Zeros stay: Stable Diffusion 3 fills up channels and a missing encoder's rows with them.
    """
    noise = torch.randn_like(states) * (states != 0)
    stretch = 0.8 + 0.4 * torch.rand(len(states)).to(states)
    lengths = states.flatten(1).norm(dim=1) / noise.flatten(1).norm(dim=1)
    scaled: Tensor = noise * (stretch * lengths).view(-1, *[1] * (states.dim() - 1))
    return scaled
