"""What the bounds of a concept's neighbourhood should be, read off the text encoder (RealEra).

The paper does not say how ``S_1``, ``S_2`` and ``D_1`` are set; the rule is ours. ``S_2`` lies just
below the median cosine of rephrasings, ``S_1`` half-way between the medians of associated and of
unrelated words, ``D_1`` where ``S_1`` puts it. All rests on a premise that is measured beside them:
that associated words are nearer than unrelated ones.
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from erasure_lightning.backbones.base import Backbone
from erasure_lightning.concepts.concept import Concept, Phrase, PromptBatch, fill_template
from erasure_lightning.concepts.vocabulary import Vocabulary
from erasure_lightning.errors import ErasureError
from erasure_lightning.training.neighbours import sentences
from erasure_lightning.training.prompt_states import aligned_states, cosine_matrix

#: Which states are compared: of all tokens from the concept's words on, aligned, or of the end of
#: text alone.
States = Literal["tokens", "eot"]

#: Sentences encoded side by side.
CHUNK = 64


class Group(NamedTuple):
    """How near a group of sentences comes to the concept's.

    Args:
        words: What stands in the concept's place, ``N`` of them, each as often as it has sentences.
        cosines: Of a sentence's states with those of the nearest of the concept's other sentences,
            ``(N,)``.
        distances: Euclidean, between the same, ``(N,)``.
    """

    words: list[str]
    cosines: Tensor
    distances: Tensor

    def by_word(self) -> dict[str, float]:
        """Mean cosine of each word, the nearest first."""
        of = {
            word: self.cosines[[w == word for w in self.words]].mean().item()
            for word in dict.fromkeys(self.words)
        }
        return dict(sorted(of.items(), key=lambda item: -item[1]))

    def within(self, low: float, high: float) -> float:
        """Share of the sentences whose cosine lies between two, 0..1."""
        return ((self.cosines >= low) & (self.cosines <= high)).float().mean().item()


class Calibration(NamedTuple):
    """The groups, the bounds they imply, and whether they deserve it.

    Args:
        groups: ``rephrasings``, ``associated`` and ``unrelated``.
        length: Median length ``r`` of the concept's states.
        min_cosine: ``S_1``.
        max_cosine: ``S_2``.
        max_distance: ``D_1``.
    """

    groups: dict[str, Group]
    length: float
    min_cosine: float
    max_cosine: float
    max_distance: float

    def separation(self) -> float:
        """Chance that an associated sentence is nearer than an unrelated one, 0..1; 0.5 would be by
        luck.
        """
        near, far = self.groups["associated"].cosines, self.groups["unrelated"].cosines
        return (near.unsqueeze(1) > far).float().mean().item()

    def holds(self) -> bool:
        """The premise: the associated median is nearer than the unrelated."""
        return bool(
            self.groups["associated"].cosines.median() > self.groups["unrelated"].cosines.median()
        )


@torch.no_grad()
def calibrate(
    backbone: Backbone,
    concept: Concept,
    synonyms: Sequence[str] = (),
    unrelated: Sequence[str] = (),
    states: States = "tokens",
) -> Calibration:
    """Measure the three groups in all the concept's sentences.

    Args:
        backbone: Whose text encoder is measured.
        concept: Its domain are the associated words.
        synonyms: Other words for it; its own sentences count as rephrasings of each other too.
        unrelated: What must be kept; by default all that the vocabulary has beside it.
        states: Which are compared.

    Raises:
        ErasureError: If nothing is associated, or nothing unrelated.
    """
    vocabulary = Vocabulary(backbone.world, [concept])
    unrelated = unrelated or [label for label in vocabulary.others if label not in synonyms]
    for name, words in {"associated": concept.domain, "unrelated": unrelated}.items():
        if not words:
            raise ErasureError(
                f"Calibration needs at least one {name} word for {concept.name!r}; found none."
            )
    own = sentences(concept, vocabulary)
    prompts = {
        "rephrasings": _sentences(own, [concept.name, *synonyms]),
        "associated": _sentences(own, concept.domain),
        "unrelated": _sentences(own, unrelated),
    }
    lengths = backbone.encode(own.prompts).tokens.norm(dim=2)
    groups = {
        name: _group(backbone, own.prompts, *pairs, states) for name, pairs in prompts.items()
    }
    return _implied(groups, lengths.median().item())


def _sentences(own: PromptBatch, words: Sequence[str]) -> tuple[list[str], list[Phrase]]:
    """Words in the concept's place in each of its sentences."""
    pairs = [(word, fill_template(template, word)) for word in words for template in own.templates]
    return [word for word, _ in pairs], [prompt for _, prompt in pairs]


def _group(
    backbone: Backbone, own: list[Phrase], words: list[str], prompts: list[Phrase], states: States
) -> Group:
    """Each sentence with the nearest of the concept's, which is not itself."""
    compare = _tokens if states == "tokens" else _ends
    parts = [compare(backbone, own, prompts[i : i + CHUNK]) for i in range(0, len(prompts), CHUNK)]
    cosines, distances = (torch.cat(values).cpu() for values in zip(*parts, strict=True))
    itself = torch.tensor([[here == there for there in own] for here in prompts])
    nearest = cosines.masked_fill(itself, -1.0).max(dim=1)
    return Group(
        words, nearest.values, distances.gather(1, nearest.indices.unsqueeze(1)).squeeze(1)
    )


def _ends(backbone: Backbone, own: list[Phrase], prompts: list[Phrase]) -> tuple[Tensor, Tensor]:
    """Cosines and distances of end-of-text states, ``(B, T)`` both."""
    here, there = (backbone.summarize(backbone.embed(part)) for part in (prompts, own))
    return cosine_matrix(here, there), torch.cdist(here, there)


def _tokens(backbone: Backbone, own: list[Phrase], prompts: list[Phrase]) -> tuple[Tensor, Tensor]:
    """The same of aligned tokens, their mean from the concept's words on."""
    there, here = backbone.encode(own), backbone.encode(prompts)
    found = []
    for number, (states, where) in enumerate(zip(there.tokens, there.from_concept(), strict=True)):
        like = aligned_states(here, like=there[number : number + 1].expand(len(prompts)))[:, where]
        cosines = torch.cosine_similarity(like, states[where], dim=2)
        found.append((cosines.mean(dim=1), (like - states[where]).norm(dim=2).mean(dim=1)))
    cosines, distances = (torch.stack(values, dim=1) for values in zip(*found, strict=True))
    return cosines, distances


def _implied(groups: dict[str, Group], length: float) -> Calibration:
    """Bounds with two decimals; ``S_1`` never above ``S_2``, nor at 0."""
    again, near, far = (
        groups[name].cosines.median().item() for name in ("rephrasings", "associated", "unrelated")
    )
    high = max(math.ceil(100 * again - 1) / 100, 0.02)
    low = min(max(round((near + far) / 2, 2), 0.01), high)
    return Calibration(
        groups, length, low, high, math.ceil(100 * length * math.sqrt(2 - 2 * low)) / 100
    )
