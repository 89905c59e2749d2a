"""Calibration of the bounds of a concept's neighbourhood, from the text encoder (RealEra).

The paper does not say how ``S_1``, ``S_2`` and ``D_1`` are set; the rule is ours. ``S_2`` lies just
below the median cosine of rephrasings, ``S_1`` half-way between the medians of associated and of
unrelated words, and ``D_1`` is what ``S_1`` implies. The rule assumes a premise that is measured
too: that associated words are nearer to the concept than unrelated ones.
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from erasure_lightning.backbones.base import Backbone
from erasure_lightning.concepts.concept import Concept, Phrase, PromptBatch, fill_template
from erasure_lightning.concepts.vocabulary import Vocabulary
from erasure_lightning.data.concept_prompts import ConceptPrompts
from erasure_lightning.errors import ErasureError
from erasure_lightning.training.prompt_states import aligned_states, cosine_matrix

#: Which states are compared: aligned ones of all tokens from the concept's words on, or end-of-text
#: states.
ComparedStates = Literal["tokens", "eot"]

#: Sentences encoded at once.
_CHUNK = 64


class SentenceGroup(NamedTuple):
    """Similarity of a group of sentences to the concept's.

    Args:
        words: The words in the concept's place, ``N`` of them, each as often as it has sentences.
        cosines: Cosines of a sentence's states with those of the nearest other sentence of the
            concept, ``(N,)``.
        distances: Euclidean distances between the same states, ``(N,)``.
    """

    words: list[str]
    cosines: Tensor
    distances: Tensor

    def by_word(self) -> dict[str, float]:
        """Mean cosine of each word, in descending order."""
        means = {}
        for word in dict.fromkeys(self.words):
            of_word = [other == word for other in self.words]
            means[word] = self.cosines[of_word].mean().item()
        return dict(sorted(means.items(), key=lambda item: -item[1]))

    def within(self, low: float, high: float) -> float:
        """Share of the sentences whose cosine lies in ``[low, high]``, 0..1."""
        return ((self.cosines >= low) & (self.cosines <= high)).float().mean().item()


class Calibration(NamedTuple):
    """The measured groups, the bounds they imply, and how well they separate.

    Args:
        groups: ``rephrasings``, ``associated`` and ``unrelated``.
        length: Median length ``r`` of the concept's states.
        min_cosine: ``S_1``.
        max_cosine: ``S_2``.
        max_distance: ``D_1``.
    """

    groups: dict[str, SentenceGroup]
    length: float
    min_cosine: float
    max_cosine: float
    max_distance: float

    def separation(self) -> float:
        """Probability that an associated sentence is nearer than an unrelated one, 0..1."""
        near = self.groups["associated"].cosines
        far = self.groups["unrelated"].cosines
        return (near.unsqueeze(1) > far).float().mean().item()

    def holds(self) -> bool:
        """Whether the premise holds: the associated median is nearer than the unrelated one."""
        near = self.groups["associated"].cosines.median()
        far = self.groups["unrelated"].cosines.median()
        return bool(near > far)


@torch.no_grad()
def calibrate(
    backbone: Backbone,
    concept: Concept,
    synonyms: Sequence[str] = (),
    unrelated: Sequence[str] = (),
    states: ComparedStates = "tokens",
) -> Calibration:
    """Measures the three groups in all sentences of a concept and derives the bounds.

    Args:
        backbone: The model whose text encoder is measured.
        concept: The concept; its domain are the associated words.
        synonyms: Other words for it; its own sentences count as rephrasings of each other too.
        unrelated: Words to retain; by default all others of the vocabulary.
        states: Which states are compared.

    Raises:
        ErasureError: If there are no associated or no unrelated words.
    """
    vocabulary = Vocabulary(backbone.world, [concept])
    unrelated = unrelated or [label for label in vocabulary.others if label not in synonyms]
    for name, words in {"associated": concept.domain, "unrelated": unrelated}.items():
        if not words:
            raise ErasureError(
                f"Calibration needs at least one {name} word for {concept.name!r}; found none."
            )
    own = ConceptPrompts([concept], vocabulary).sentences(0)
    groups = {
        "rephrasings": _group(backbone, own, [concept.name, *synonyms], states),
        "associated": _group(backbone, own, concept.domain, states),
        "unrelated": _group(backbone, own, unrelated, states),
    }
    lengths = backbone.encode(own.prompts).tokens.norm(dim=2)
    return _bounds(groups, lengths.median().item())


def _group(
    backbone: Backbone, own: PromptBatch, words: Sequence[str], states: ComparedStates
) -> SentenceGroup:
    """The words in the concept's sentences, each compared with the nearest that is not itself."""
    pairs = [(word, fill_template(template, word)) for word in words for template in own.templates]
    prompts = [prompt for _, prompt in pairs]
    compare = _compare_tokens if states == "tokens" else _compare_ends
    parts = [
        compare(backbone, own.prompts, prompts[i : i + _CHUNK])
        for i in range(0, len(prompts), _CHUNK)
    ]
    cosines, distances = (torch.cat(values).cpu() for values in zip(*parts, strict=True))
    itself = torch.tensor([[prompt == other for other in own.prompts] for prompt in prompts])
    nearest = cosines.masked_fill(itself, -1.0).max(dim=1)
    distances = distances.gather(1, nearest.indices.unsqueeze(1)).squeeze(1)
    return SentenceGroup([word for word, _ in pairs], nearest.values, distances)


def _compare_ends(
    backbone: Backbone, own: list[Phrase], prompts: list[Phrase]
) -> tuple[Tensor, Tensor]:
    """Cosines and distances of end-of-text states, ``(prompts, own)`` both."""
    rows = backbone.summarize(backbone.embed(prompts))
    columns = backbone.summarize(backbone.embed(own))
    return cosine_matrix(rows, columns), torch.cdist(rows, columns)


def _compare_tokens(
    backbone: Backbone, own: list[Phrase], prompts: list[Phrase]
) -> tuple[Tensor, Tensor]:
    """Mean cosines and distances of aligned tokens from the concept's words on."""
    own_states = backbone.encode(own)
    states = backbone.encode(prompts)
    cosines = []
    distances = []
    for row, where in enumerate(own_states.reads_concept()):
        like = own_states[row : row + 1].expand(len(prompts))
        aligned = aligned_states(states, like=like)[:, where]
        tokens = own_states.tokens[row, where]
        cosines.append(torch.cosine_similarity(aligned, tokens, dim=2).mean(dim=1))
        distances.append((aligned - tokens).norm(dim=2).mean(dim=1))
    return torch.stack(cosines, dim=1), torch.stack(distances, dim=1)


def _bounds(groups: dict[str, SentenceGroup], length: float) -> Calibration:
    """Bounds with two decimals; ``S_1`` is at most ``S_2`` and above 0."""
    rephrased, near, far = (
        groups[name].cosines.median().item() for name in ("rephrasings", "associated", "unrelated")
    )
    max_cosine = max(math.ceil(100 * rephrased - 1) / 100, 0.02)
    min_cosine = min(max(round((near + far) / 2, 2), 0.01), max_cosine)
    max_distance = math.ceil(100 * length * math.sqrt(2 - 2 * min_cosine)) / 100
    return Calibration(groups, length, min_cosine, max_cosine, max_distance)
