"""Prompts of what an edit retains, to train attacks on."""

import torch

from erasure_lightning.concepts.vocabulary import Vocabulary
from erasure_lightning.errors import ErasureError
from erasure_lightning.files.words import folded


def draw_retained_prompts(vocabulary: Vocabulary, count: int) -> list[str]:
    """``count`` prompts about retained labels, drawn with torch's global generator.

    Raises:
        ErasureError: If every label shares a word with an erased concept.
    """
    erased_words = {
        word
        for c in vocabulary.concepts
        for name in (c.name, *c.domain)
        for word in folded(name).split()
    }
    labels = [label for label in vocabulary.others if not erased_words & set(folded(label).split())]
    if not labels:
        raise ErasureError(
            "An attack needs labels to retain; found none that shares no word with the erased"
            " concepts."
        )
    order = torch.randperm(len(labels)).tolist()
    drawn = [_captions_of(vocabulary, labels[order[i % len(labels)]]) for i in range(count)]
    return [captions[int(torch.randint(len(captions), ()))] for captions in drawn]


def _captions_of(vocabulary: Vocabulary, label: str) -> list[str]:
    """The captions of a label; while a style is erased, only those that name another style."""
    captions = vocabulary.retained_captions(label)
    return captions[len(vocabulary.captions) :] or captions
