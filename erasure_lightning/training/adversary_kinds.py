"""Kinds of `Adversary`: words of the prompt, prefixes, inverted concepts, text states."""

from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import SGD, AdamW, Optimizer

from erasure_lightning.backbones.base import Backbone
from erasure_lightning.backbones.conditioning import CONCEPT, TEMPLATE, Conditioning
from erasure_lightning.checks import require
from erasure_lightning.concepts.concept import PromptBatch
from erasure_lightning.files.arguments import require_choices
from erasure_lightning.training.adversary import Adversary, AdversaryModels, Point
from erasure_lightning.training.latent_sources import NoisyBatch
from erasure_lightning.training.prompt_words import (
    encode_word,
    mean_embeddings,
    prepend_words,
    random_words,
)

#: Roles of the positions that a `WordAdversary` varies.
_VARIED = {"template": (TEMPLATE,), "all": (TEMPLATE, CONCEPT)}


class WordAdversary(Adversary):
    """Varies the word embeddings of the sentence, from the sentence itself outward.

    The self-check of SAGE (Zhu et al., arXiv 2506.09363) in the space of predictions, by Adam; its
    later starts are random words of the vocabulary.

    Args:
        where: Which words: those of the ``template`` (SAGE), or ``all``, the concept's too.
        share: As in `Adversary`; half, as in SAGE, which erases both sentences in every step.
        kwargs: Further arguments of `Adversary`.

    Raises:
        ErasureError: If a number is out of range, or ``where`` is neither.
    """

    def __init__(
        self,
        *,
        where: Literal["template", "all"] = "all",
        share: float = 0.5,
        **kwargs: Any,
    ) -> None:
        super().__init__(share=share, **kwargs)
        self.where = where
        require_choices(type(self), vars(self))

    def start(self, sentences: PromptBatch, models: AdversaryModels, number: int) -> Point:
        """Embeddings of the sentences; random words in later searches, ``(B, L, E)`` a tower."""
        embedded = models.student.embed(sentences.prompts)
        if not number:
            return [each.embeddings.float().clone() for each in embedded]
        return random_words(models.student, [tuple(each.ids.shape) for each in embedded])

    def encode(self, sentences: PromptBatch, point: Point, student: Backbone) -> Conditioning:
        """The sentences with the point's embeddings in the positions that vary."""
        embedded = student.embed(sentences.prompts)
        roles = _VARIED[self.where]
        prompts = [e.with_embeddings(w, *roles) for e, w in zip(embedded, point, strict=True)]
        return student.contextualize(prompts)


class PrefixAdversary(Adversary):
    """Varies the embeddings of words before the sentence, from random words of the vocabulary.

    The attack of AdvUnlearn (Zhang et al., arXiv 2405.15234), whose numbers are the defaults. Each
    of its steps is at latents of its own.

    Args:
        words: Number of words before the sentence, at least 1.
        sign: Whether Adam receives signs of gradients (the official ``fast_at``).
        kwargs: Further arguments of `Adversary`.

    Raises:
        ErasureError: If a number is out of range.
    """

    fresh = True

    def __init__(self, *, words: int = 1, sign: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        require("PrefixAdversary", at_least=1, words=words)
        self.words = words
        self.sign = sign

    def start(self, sentences: PromptBatch, models: AdversaryModels, number: int) -> Point:
        """Random words, ``(B, k, E)`` for each text encoder."""
        shape = (len(sentences.concepts), self.words)
        return random_words(models.student, [shape] * len(models.student.towers))

    def encode(self, sentences: PromptBatch, point: Point, student: Backbone) -> Conditioning:
        """The sentences with the point's words before them."""
        embedded = student.embed(sentences.prompts)
        prompts = [prepend_words(each, words) for each, words in zip(embedded, point, strict=True)]
        return student.contextualize(prompts)

    def direction(self, gradient: Tensor) -> Tensor:
        """The gradient, or its signs."""
        return gradient.sign() if self.sign else gradient


class InversionAdversary(Adversary):
    """Learns words for the concepts in the current student, and puts one in the concept's place.

    The concept inversion of STEREO (Srivatsan et al., arXiv 2408.16807), whose numbers are the
    defaults. A new word is learned every ``every`` steps, and the newest ones are erased from then
    on, a random one for each row; they are saved with a checkpoint.

    Cost: ``starts * steps`` forwards and backwards for each word.

    Args:
        every: Training steps between two words, at least 1.
        words: Number of words of each concept that are in use, at least 1.
        steps: Steps of AdamW for each word.
        lr: Rate of AdamW.
        weight_decay: Decay of AdamW, at least 0.
        share: As in `Adversary`.
        kwargs: Further arguments of `Adversary`.

    Raises:
        ErasureError: If a number is out of range.
    """

    fresh = True

    def __init__(
        self,
        *,
        every: int = 200,
        words: int = 4,
        steps: int = 3000,
        lr: float = 5e-3,
        weight_decay: float = 0.01,
        share: float = 0.5,
        **kwargs: Any,
    ) -> None:
        super().__init__(steps=steps, lr=lr, share=share, **kwargs)
        require("InversionAdversary", at_least=1, every=every, words=words)
        require("InversionAdversary", at_least=0, weight_decay=weight_decay)
        self.every = every
        self.words = words
        self.weight_decay = weight_decay
        #: Embeddings of the concepts' words, the newest last; ``(N, E)`` for each text encoder.
        self.learned: list[Point] = []
        self._searches = 0
        #: Whether the words are those of a checkpoint, with which the next fit continues.
        self._restored = False

    def prepare(self) -> None:
        """Drops the words of an earlier fit, which may be of other concepts."""
        if not self._restored:
            self.learned = []
            self._searches = 0
        self._restored = False

    def conditioning(self, batch: NoisyBatch, step: int, models: AdversaryModels) -> Conditioning:
        """The sentences with learned words, or plain; learns new words if they are due."""
        if self.steps and step - self.begin >= self._searches * self.every:
            self.learn(len(batch), step, models)
        if not self.is_active(step):
            return models.student.encode(batch.prompts)
        choice = torch.randint(len(self.learned), (len(batch),))
        return self.encode_learned(batch.sentences, choice, models.student)

    def learn(self, count: int, number: int, models: AdversaryModels) -> None:
        """Learns a word for each concept, and drops the oldest beyond `words`.

        Args:
            count: Least number of latents in a step, of which each concept has as many.
            number: Number by which `AdversaryModels` selects the sentences.
            models: The models that are searched.
        """
        concepts = len(models.concepts)
        sentences = models.sentences(-(-count // concepts) * concepts, number)
        newest = self.search(models.draw(sentences), models)
        self.learned = [*self.learned, newest][-self.words :]
        self._searches += 1

    def encode_learned(
        self, sentences: PromptBatch, choice: Tensor, student: Backbone
    ) -> Conditioning:
        """Sentences with learned words.

        Args:
            sentences: ``B`` of them.
            choice: Which word of its concept each gets, as an index into `learned`, ``(B,)``.
            student: The model that encodes them.
        """
        towers = [
            torch.stack(words).to(student.device) for words in zip(*self.learned, strict=True)
        ]
        indices = torch.tensor(sentences.indices)
        return encode_word(student, sentences.templates, [t[choice, indices] for t in towers])

    def start(self, sentences: PromptBatch, models: AdversaryModels, number: int) -> Point:
        """The mean of each concept's embeddings; random words in later searches, ``(N, E)``."""
        if number:
            return random_words(
                models.student, [(len(models.concepts),)] * len(models.student.towers)
            )
        each = [mean_embeddings(models.student, name) for name in models.concepts]
        return [torch.cat(rows).float() for rows in zip(*each, strict=True)]

    def encode(self, sentences: PromptBatch, point: Point, student: Backbone) -> Conditioning:
        """The sentences with the word of each one's concept in its place."""
        indices = torch.tensor(sentences.indices, device=point[0].device)
        return encode_word(student, sentences.templates, [words[indices] for words in point])

    def optimizer(self, point: Point) -> Optimizer:
        """AdamW."""
        return AdamW(point, lr=self.lr, weight_decay=self.weight_decay)

    def by_row(self, values: Tensor, sentences: PromptBatch) -> Tensor:
        """The mean of each concept's values ``(B,)``, ``(N,)``; 0 where it has none."""
        indices = torch.tensor(sentences.indices, device=values.device)
        concepts = torch.arange(1 + max(sentences.indices), device=values.device)
        own = (concepts.unsqueeze(1) == indices).to(values)
        return own @ values / own.sum(dim=1).clamp(min=1)

    def state_dict(self) -> dict[str, Any]:
        """The words, and how often they were learned."""
        return {"found": self.learned, "searches": self._searches}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the words."""
        self.learned = state["found"]
        self._searches = state["searches"]
        self._restored = True


class StateAdversary(Adversary):
    """Varies the text states that the denoiser reads, in a ball around those of the sentence.

    The attack of RACE (Kim et al., arXiv 2405.16341), whose numbers are the defaults: projected
    steps on the signs of gradients from a random point of the ball, at the latents of the loss
    (a *single timestep*). States stay between the lowest and the highest of the sentence. A pooled
    vector, where the family has one, varies too, in a ball of the same radius.

    Args:
        radius: Largest change of a state, above 0.
        steps: Steps of a search.
        lr: Change of every state in a step; a quarter of the radius by default.
        kwargs: Further arguments of `Adversary`.

    Raises:
        ErasureError: If a number is out of range.
    """

    def __init__(
        self, *, radius: float = 0.1, steps: int = 10, lr: float | None = None, **kwargs: Any
    ) -> None:
        require("StateAdversary", above=0, radius=radius)
        super().__init__(steps=steps, lr=radius / 4 if lr is None else lr, **kwargs)
        self.radius = radius

    @torch.no_grad()
    def start(self, sentences: PromptBatch, models: AdversaryModels, number: int) -> Point:
        """Random changes of the states ``(B, L, D)``, and of pooled vectors ``(B, P)``."""
        plain = models.student.encode(sentences.prompts)
        states = [plain.tokens] if plain.pooled is None else [plain.tokens, plain.pooled]
        return [(self.radius * (2 * torch.rand(each.shape) - 1)).to(each) for each in states]

    def encode(self, sentences: PromptBatch, point: Point, student: Backbone) -> Conditioning:
        """The sentences' states, changed."""
        plain = student.encode(sentences.prompts)
        tokens = _clamped_sum(plain.tokens, point[0])
        pooled = None if plain.pooled is None else _clamped_sum(plain.pooled, point[1])
        return replace(plain, tokens=tokens, pooled=pooled)

    def optimizer(self, point: Point) -> Optimizer:
        """Plain steps, of equal length in all states."""
        return SGD(point, lr=self.lr)

    def direction(self, gradient: Tensor) -> Tensor:
        """The signs of the gradient."""
        return gradient.sign()

    def project(self, point: Point) -> None:
        """Moves changes into the ball."""
        for change in point:
            change.clamp_(-self.radius, self.radius)


def _clamped_sum(states: Tensor, change: Tensor) -> Tensor:
    """States ``(B, ...)`` plus a change, between the lowest and highest of each row.

    Zeros stay: Stable Diffusion 3 fills up channels and a missing encoder's rows with them.
    """
    rows = states.detach().flatten(1)
    shape = (-1, *[1] * (states.dim() - 1))
    changed = states + change * (states.detach() != 0)
    return changed.clamp(rows.amin(dim=1).view(shape), rows.amax(dim=1).view(shape))
