"""`ZeroShotClassifier`: what each picture of the plan is asked, and how a scorer knows the answers."""

from collections.abc import Collection, Sequence
from functools import cache

import torch
from torch import Tensor

from erasure_lightning.concepts.vocabulary import Vocabulary
from erasure_lightning.files.words import folded
from erasure_lightning.metrics.groups import ERASING
from erasure_lightning.metrics.scorer import Scorer
from erasure_lightning.metrics.seed_statistics import Question


class ZeroShotClassifier:
    """Questions to the pictures of a plan; each set of labels is embedded once.

    Args:
        scorer: Embeds the labels.
        vocabulary: What the model draws, and what of it is erased.
        answers: Labels that pictures are expected to show; those unknown to the vocabulary join its
            labels.
    """

    def __init__(self, scorer: Scorer, vocabulary: Vocabulary, answers: Collection[str]) -> None:
        self.scorer = scorer
        self.vocabulary = vocabulary
        extra = [answer for answer in answers if not vocabulary.named([answer])]
        self.labels = tuple(dict.fromkeys([*vocabulary.labels, *extra]))
        # Shots of one prompt differ by seed alone, and all things share one question.
        self.question = cache(self._question)
        self.text = cache(self._text)
        self._embedded = cache(scorer.texts)

    def _text(self, prompt: str) -> Tensor:
        """Unit vector ``(D,)`` of a prompt."""
        return self.scorer.texts([prompt])[0]

    def _question(self, group: str, answer: str) -> Question:
        """What a picture of a group is asked; arguments as in a `ImageRequest`."""
        if group in ERASING:
            return self._style(answer) if answer else self._thing(self.vocabulary.erased)
        return self._thing(self.vocabulary.named([answer]) or {answer})

    def _thing(self, right: Collection[str]) -> Question:
        texts = tuple(self.vocabulary.captions[1].format(label) for label in self.labels)
        return self._ask(texts, [label in right for label in self.labels])

    def _style(self, thing: str) -> Question:
        """Is it still the erased style? Out of the world's styles, or else against the thing in no
        style at all.
        """
        gone = [c.name for c in self.vocabulary.concepts if c.kind == "style"]
        world = self.vocabulary.world
        styles = [*world.styles] if world else gone
        texts = [self.vocabulary.styled(thing, style) for style in styles]
        right = [folded(style) in map(folded, gone) for style in styles]
        if all(right):
            texts, right = [*texts, self.vocabulary.captions[1].format(thing)], [*right, False]
        return self._ask(tuple(texts), right)

    def _ask(self, texts: tuple[str, ...], right: Sequence[bool]) -> Question:
        labels = self._embedded(texts)
        return Question(labels, torch.tensor(right, device=labels.device))
