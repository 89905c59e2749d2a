"""`ZeroShotClassifier`: candidate labels for generated images, embedded by a scorer."""

from collections.abc import Collection, Sequence
from functools import cache, cached_property

import torch
from torch import Tensor

from erasure_lightning.concepts.vocabulary import Vocabulary
from erasure_lightning.files.words import folded
from erasure_lightning.metrics.groups import ERASURE_GROUPS
from erasure_lightning.metrics.scorer import Scorer
from erasure_lightning.metrics.seed_statistics import CandidateLabels


class ZeroShotClassifier:
    """Candidate labels of images by group and answer; each set of labels is embedded once.

    Args:
        scorer: Embeds the labels.
        vocabulary: Labels that the model can generate, and the erased concepts.
        answers: Labels that images are expected to show; those unknown to the vocabulary are added
            to its labels.
    """

    def __init__(self, scorer: Scorer, vocabulary: Vocabulary, answers: Collection[str]) -> None:
        self.scorer = scorer
        self.vocabulary = vocabulary
        extra = [answer for answer in answers if not vocabulary.named([answer])]
        self.labels = tuple(dict.fromkeys([*vocabulary.labels, *extra]))
        # Images of one prompt differ by seed alone, and all things share one set of candidates.
        self.candidates = cache(self._candidates)
        self.text = cache(self._text)
        self._embedded = cache(scorer.texts)

    def _text(self, prompt: str) -> Tensor:
        """Unit vector ``(D,)`` of a prompt."""
        return self.scorer.texts([prompt])[0]

    def _candidates(self, group: str, answer: str) -> CandidateLabels:
        """The candidate labels of an image of a group; arguments as in an `ImageRequest`."""
        if group in ERASURE_GROUPS:
            return self._styles([answer]) if answer else self._things(self.vocabulary.erased)
        return self._things(self.vocabulary.named([answer]) or {answer})

    def _things(self, right: Collection[str]) -> CandidateLabels:
        texts = tuple(self.vocabulary.captions[1].format(label) for label in self.labels)
        return self._embed(texts, [label in right for label in self.labels])

    @cached_property
    def styles(self) -> CandidateLabels:
        """The styles of every thing, for images whose prompts need not name one.

        Of an image that shows another thing, the nearest of one thing's styles is often another
        than its own.
        """
        return self._styles(self.labels)

    def _styles(self, things: Sequence[str]) -> CandidateLabels:
        """The world's styles of things; if all are erased, also the things in no style."""
        erased = [c.name for c in self.vocabulary.concepts if c.kind == "style"]
        world = self.vocabulary.world
        styles = [*world.styles] if world else erased
        right = [folded(style) in map(folded, erased) for style in styles for _ in things]
        texts = [self.vocabulary.styled(thing, style) for style in styles for thing in things]
        if all(right):
            texts += [self.vocabulary.captions[1].format(thing) for thing in things]
            right += [False] * len(things)
        return self._embed(tuple(texts), right)

    def _embed(self, texts: tuple[str, ...], right: Sequence[bool]) -> CandidateLabels:
        labels = self._embedded(texts)
        return CandidateLabels(labels, torch.tensor(right, device=labels.device))
