"""Learned mixtures of a vocabulary's words, by Gumbel softmax; the methods that have one."""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from erasure_lightning.backbones.base import Backbone
from erasure_lightning.backbones.conditioning import Conditioning
from erasure_lightning.checks import require
from erasure_lightning.concepts.prompt_lists import read_prompt_list, without_concepts
from erasure_lightning.concepts.vocabulary import Vocabulary, evenly_spaced
from erasure_lightning.distributed.collectives import gather_on_first_rank, of_this_rank
from erasure_lightning.errors import ErasureError
from erasure_lightning.training.adapter_methods import PartErasure
from erasure_lightning.training.latent_sources import NoisyBatch

#: Prompts encoded at once.
_CHUNK = 64


class WordMixture:
    """For each concept a distribution over words near it, learned by gradient ascent.

    A sample is ``sum_i w_i E_i`` of the words' states ``E_i``, with ``w = softmax((pi + G) / T)``
    of logits ``pi`` and Gumbel noise ``G``. The candidates are words at equal ranks among the
    nearest, by the distance of their states to the concept's; the official code of Bui et al. has
    k-means of these distances.

    Args:
        original: Encodes concepts and words.
        concepts: The concepts' names.
        words: The vocabulary.
        closest: Number of nearest words that may be candidates, at least 1.
        centres: Number of those, at equal ranks, that are candidates, at least 1.
        temperature: ``T``, above 0.
        lr: Rate of Adam on the logits.
        top: Number of words that share a sample, whose weights are rescaled to a sum of 1; with
            ``None`` a sample is the likeliest word alone, with the gradient of all their weights
            (straight-through).
    """

    def __init__(
        self,
        original: Backbone,
        concepts: Sequence[str],
        words: Sequence[str],
        *,
        closest: int,
        centres: int,
        temperature: float,
        lr: float,
        top: int | None = None,
    ) -> None:
        self.temperature = temperature
        self.top = top
        near = self._ranked(original, concepts, words)[:, :closest].tolist()
        chosen = [evenly_spaced(ranked, centres) for ranked in near]
        numbers = sorted({number for row in chosen for number in row})
        #: States of the words that are a concept's candidates.
        self.table = Conditioning.cat(
            [original.encode(part) for part in _chunks([words[number] for number in numbers])]
        )
        rows = {number: row for row, number in enumerate(numbers)}
        #: Rows of each concept's candidates in the table, nearest first, ``(concepts, n)``.
        self.candidates = torch.tensor(
            [[rows[number] for number in row] for row in chosen], device=original.device
        )
        shape = self.candidates.shape
        self.logits = torch.full(shape, 1 / shape[1], device=original.device, requires_grad=True)
        self._optimizer = torch.optim.Adam([self.logits], lr=lr, maximize=True)

    @staticmethod
    def _ranked(original: Backbone, concepts: Sequence[str], words: Sequence[str]) -> Tensor:
        """Numbers of all words by the distance of their states to each concept's.

        The states themselves, of a long list gigabytes, are not kept.

        Returns:
            The numbers, ``(concepts, words)``.
        """
        own = [original.encode([name]).tokens for name in concepts]
        distances = [
            torch.stack([(states - state).flatten(1).float().norm(dim=1) for state in own])
            for states in (original.encode(part).tokens for part in _chunks(words))
        ]
        return torch.cat(distances, dim=1).argsort(dim=1)

    def sample(self, concepts: Sequence[int]) -> Conditioning:
        """A sample of each concept's mixture, with gradient, tokens ``(B, L, D)``.

        Its roles, and so its padding, are those of its likeliest word.

        Args:
            concepts: Numbers of ``B`` concepts.
        """
        rows = torch.tensor(concepts)
        count = self.logits.shape[1]
        gumbel = -torch.empty(len(rows), count).exponential_().log().to(self.logits)
        weights = self._sharpened(((self.logits[rows] + gumbel) / self.temperature).softmax(dim=1))
        words = self.table[self.candidates[rows]]

        def mixed(states: Tensor) -> Tensor:
            return torch.einsum("bn,bn...->b...", weights.to(states), states)

        pooled = None if words.pooled is None else mixed(words.pooled)
        likeliest = words[torch.arange(len(rows)), weights.argmax(dim=1).to(rows.device)]
        return replace(likeliest, tokens=mixed(words.tokens), pooled=pooled)

    def _sharpened(self, weights: Tensor) -> Tensor:
        """Weights ``(B, n)`` of the largest alone."""
        count = weights.shape[1]
        if self.top is None:
            hard = one_hot(weights.argmax(dim=1), count).to(weights)
            return hard + weights - weights.detach()
        top = one_hot(weights.topk(min(self.top, count)).indices, count).sum(dim=1)
        return weights * top / (weights * top).sum(dim=1, keepdim=True)

    def ascend(self, objective: Tensor) -> None:
        """One step of the logits towards a larger objective, a scalar; weights get no gradient."""
        (self.logits.grad,) = torch.autograd.grad(objective, self.logits)
        self._optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        """Logits and the state of their optimizer."""
        return {"logits": self.logits.detach(), "ascent": self._optimizer.state_dict()}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the state of `state_dict`."""
        self.logits.copy_(state["logits"])
        self._optimizer.load_state_dict(state["ascent"])


def _chunks(words: Sequence[str]) -> Iterator[Sequence[str]]:
    """The words, `_CHUNK` at a time."""
    for i in range(0, len(words), _CHUNK):
        yield words[i : i + _CHUNK]


class WordMixtureErasure(PartErasure):
    """Base of methods that train a part of the denoiser, and a mixture of words for each concept.

    Args:
        vocabulary: A text file of candidate words, one a line, or the name of a shipped list
            (``artists``), without the concepts and their domains; by default the world's labels.
        closest: Number of nearest words that may be in a concept's mixture; at least 1. Officially
            1000 of 3000 English words; of a shorter list all.
        centres: Number of those, at equal ranks, that are; at least 1.
        temperature: Temperature of the Gumbel softmax, above 0.
        kwargs: Arguments of `PartErasure`.

    Raises:
        ErasureError: If a number is out of range.
    """

    def __init__(
        self,
        *,
        vocabulary: str | None = None,
        closest: int = 1000,
        centres: int = 100,
        temperature: float = 2.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        require(type(self).__name__, at_least=1, closest=closest, centres=centres)
        require(type(self).__name__, above=0, temperature=temperature)
        self.vocabulary = vocabulary
        self.closest = closest
        self.centres = centres
        self.temperature = temperature
        #: State of the mixtures in a checkpoint, until training starts.
        self._restored: dict[str, Any] = {}

    @abstractmethod
    def mixture_settings(self) -> dict[str, Any]:
        """Arguments of `WordMixture` that are the method's own: ``lr`` and ``top``."""

    @torch.no_grad()
    def prepare(self) -> None:
        """Encodes the vocabulary, selects each concept's candidates, and restores the mixtures."""
        words = self._candidates()
        super().prepare()
        self.words = WordMixture(
            self.original,
            [concept.name for concept in self.concepts],
            words,
            closest=self.closest,
            centres=self.centres,
            temperature=self.temperature,
            **self.mixture_settings(),
        )
        if self._restored:
            self.words.load_state_dict(self._restored)

    def _candidates(self) -> list[str]:
        """The vocabulary without the concepts and their domains.

        Raises:
            ErasureError: If that leaves no word.
        """
        owner = type(self).__name__
        if self.vocabulary:
            words = without_concepts(read_prompt_list(self.vocabulary, owner), self.concepts)
        else:
            words = Vocabulary(self.backbone.world, self.concepts).others
        if not words:
            raise ErasureError(
                f"{owner} needs words beside the concepts and their domains; found none in"
                f" {self.vocabulary or 'the labels. Give it a vocabulary'}."
            )
        return words

    def mixture(self, batch: NoisyBatch) -> Conditioning:
        """A sample of each sentence's mixture, with gradient, tokens ``(B, L, D)``."""
        return self.words.sample(batch.indices)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Saves the mixtures of every rank too, which each learns at latents of its own."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["mixtures"] = gather_on_first_rank(self.words.state_dict())

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restores the mixtures when training starts."""
        super().on_load_checkpoint(checkpoint)
        self._restored = of_this_rank(checkpoint.get("mixtures", [])) or {}
