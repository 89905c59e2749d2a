"""`ConceptPrompts`: the sentences that concepts are trained in."""

from collections.abc import Iterator, Sequence
from itertools import cycle
from typing import TypeVar

import torch

from erasure_lightning.concepts.concept import Concept, PromptBatch, fill_template
from erasure_lightning.concepts.vocabulary import Vocabulary, evenly_spaced
from erasure_lightning.seeding import derive_seed

_Item = TypeVar("_Item")


class ConceptPrompts:
    """Draws batches of concept prompts as a function of seed, rank and number.

    Args:
        concepts: What is erased.
        vocabulary: Templates of each kind of concept, and the retained things.
        templates: Sentences with ``{}`` for the concept (and ``{thing}`` for something retained);
            by default the vocabulary's.
        seed: Seed of every draw.
        rank: Number of the process; ranks draw different prompts.
    """

    def __init__(
        self,
        concepts: Sequence[Concept],
        vocabulary: Vocabulary,
        templates: Sequence[str] | None = None,
        seed: int = 0,
        rank: int = 0,
    ) -> None:
        self.concepts = concepts
        self.vocabulary = vocabulary
        self.templates = templates
        self.seed = seed
        self.rank = rank
        self._others = vocabulary.others

    def batch(self, count: int, number: int, salt: int) -> PromptBatch:
        """Concept prompts of a batch.

        Args:
            count: Number of prompts, at least 1.
            number: Number of the batch, from 0.
            salt: Number of the batch's use (training, rollouts, images), which changes the draws.
        """
        generator = torch.Generator().manual_seed(derive_seed(self.seed, self.rank, number, salt))
        indices = [self._index(number * count + i) for i in range(count)]
        chosen = [self.concepts[index] for index in indices]
        templates = [self._template(concept, generator) for concept in chosen]
        return PromptBatch(templates, [c.name for c in chosen], [c.anchor for c in chosen], indices)

    def covering(self, count: int, number: int, salt: int) -> PromptBatch:
        """As `batch`, with every concept in each set of at least as many prompts."""
        concepts = len(self.concepts)
        whole = -(-count // concepts) * concepts  # so that a set begins with a round of concepts
        return self.batch(whole, number, salt).rows(range(count))

    def sentences(self, index: int) -> PromptBatch:
        """All sentences of a concept; a style's are about retained things, evenly spaced.

        Args:
            index: The concept's number.
        """
        concept = self.concepts[index]
        filled = self.with_things(self._templates(concept))
        names, anchors = ([word] * len(filled) for word in (concept.name, concept.anchor))
        return PromptBatch(filled, names, anchors, [index] * len(filled))

    def with_things(self, templates: Sequence[str]) -> list[str]:
        """Templates with retained things, evenly spaced, in the place of ``{thing}``."""
        things = cycle(evenly_spaced(self._others, len(templates)) or [""])
        return [t.replace("{thing}", thing) for t, thing in zip(templates, things, strict=False)]

    def every(self) -> Iterator[str]:
        """All sentences of concepts and anchors, with the longest name of a retained thing."""
        longest = max(self._others, key=len, default="")
        for concept in self.concepts:
            for template in self._templates(concept):
                filled = template.replace("{thing}", longest)
                yield fill_template(filled, concept.name).text
                yield fill_template(filled, concept.anchor).text

    def _index(self, place: int) -> int:
        """Number of the concept at a place: concepts take turns, in an order drawn each round."""
        turn, place = divmod(place, len(self.concepts))
        generator = torch.Generator().manual_seed(derive_seed(self.seed, self.rank, turn, 2))
        return int(torch.randperm(len(self.concepts), generator=generator)[place])

    def _template(self, concept: Concept, generator: torch.Generator) -> str:
        template = _pick(self._templates(concept), generator)
        return template.replace("{thing}", _pick(self._others or [""], generator))

    def _templates(self, concept: Concept) -> Sequence[str]:
        return self.templates or self.vocabulary.templates(concept.kind)


def _pick(items: Sequence[_Item], generator: torch.Generator) -> _Item:
    """One of the items, all equally likely."""
    return items[int(torch.randint(len(items), (), generator=generator))]
