"""Domain mining: words for which a model predicts as for a concept.

With ``eps*`` the original, ``s*`` its summary of a prompt, ``p(w)`` a sentence with the word ``w``,
``p()`` the sentence without one, and ``D(w) = eps*(p(w)) - eps*(p())`` at pure noise ``n``,

    ``domain(c) = { w : median over n of cos( D(w), D(c) ) >= b }``

among the ``K`` words of nearest ``s*(p(w))``, of the tokenizer's whole words and of a list: a word
of several tokens is as likely to draw the concept (*bunny* a rabbit, *toadstool* a mushroom).

Reconstructed: SAGE (arXiv 2506.09363) erases a concept's domain; how words of it are obtained is
ours. Text states alone do not tell them: on the emoji world *death*, which draws a skull, is 186th
among the words near *skull*, after *ghost*, which draws a ghost.

Cost: a forward of the text encoder for each word, once, and ``K`` forwards of the text encoder and
four times as many of the denoiser for each concept.
"""

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from erasure_lightning.backbones.base import Backbone
from erasure_lightning.concepts.concept import Concept, Phrase, fill_template
from erasure_lightning.concepts.vocabulary import Vocabulary
from erasure_lightning.files.words import folded

#: Number of the sentence, ``a {}`` for things; the first, the bare word, tells less.
_TEMPLATE = 1

#: Position of the noise in the range of times: where a sampler decides what an image shows.
_TIME = 0.95

#: Seeds of the noise; for a single one some words are similar by accident, others dissimilar.
_SEEDS = range(4)

#: Prompts that are encoded, or predicted for, at a time.
_BATCH = 64


@torch.no_grad()
def domain_words(
    original: Backbone,
    concepts: Sequence[Concept],
    similarity: float,
    candidates: int,
    more: Sequence[str] = (),
) -> list[list[str]]:
    """Words of each concept's domain, the most similar first.

    Concepts, anchors and retained labels are left out. Styles have none: a prediction changes too
    little with a style for words to be told apart.

    Args:
        original: The frozen original.
        concepts: The concepts.
        similarity: Least cosine ``b`` of predictions, in 0..1.
        candidates: Number ``K`` of words whose predictions are compared, at least 1.
        more: Words and phrases beside the tokenizer's whole words.
    """
    vocabulary = Vocabulary(original.world, concepts)
    names = [name for c in concepts for name in (c.name, c.anchor)]
    excluded = set(map(folded, (*names, *vocabulary.others)))
    spelled = (original.spell(token[None]).strip() for token in original.words())
    known = dict.fromkeys((*filter(str.isalpha, spelled), *more))
    words = [word for word in known if folded(word) not in excluded]

    @cache  # concepts of one kind share it
    def summaries(template: str) -> Tensor:
        return _summaries(original, _sentences(template, words))

    domains = list[list[str]]()
    for concept in concepts:
        if concept.kind == "style" or not words:
            domains.append([])
            continue
        template = vocabulary.templates(concept.kind)[_TEMPLATE]
        own = _summaries(original, _sentences(template, [concept.name]))
        near = _nearest(own, summaries(template), candidates)
        some = [words[i] for i in near]
        similarities = _similarities(original, template, concept.name, some)
        ranked = sorted(zip(similarities, some, strict=True), reverse=True)
        domains.append([word for value, word in ranked if value >= similarity])
    return domains


def _sentences(template: str, words: Sequence[str]) -> list[Phrase]:
    return [fill_template(template, word) for word in words]


def _nearest(own: Tensor, others: Tensor, count: int) -> list[int]:
    """Numbers of the summaries ``(N, S)`` that are nearest to one, ``(1, S)``."""
    # Sentences have much in common, which would dominate their cosines.
    mean = others.mean(dim=0)
    cosines = cosine_similarity(others - mean, own - mean)
    nearest: list[int] = cosines.topk(min(count, len(others))).indices.tolist()
    return nearest


def _similarities(
    original: Backbone, template: str, name: str, words: Sequence[str]
) -> list[float]:
    """Median of ``cos( D(w), D(c) )`` for each word ``w`` and the concept ``c``."""
    sentences = _sentences(template, ["", name, *words])
    each = []
    for seed in _SEEDS:
        predictions = _predictions(original, sentences, seed)
        directions = predictions[1:] - predictions[0]
        each.append(cosine_similarity(directions[1:], directions[:1]))
    similarities: list[float] = torch.stack(each).quantile(0.5, dim=0).tolist()
    return similarities


def _summaries(original: Backbone, prompts: Sequence[Phrase]) -> Tensor:
    """Summaries of prompts, ``(N, S)``."""
    batches = [prompts[i : i + _BATCH] for i in range(0, len(prompts), _BATCH)]
    return torch.cat([original.summarize(original.embed(batch)) for batch in batches])


def _predictions(original: Backbone, prompts: Sequence[Phrase], seed: int) -> Tensor:
    """Predictions for prompts at a pure noise, ``(N, C h w)``, float32."""
    noise = original.noise([seed])
    times = original.process.at(torch.full((_BATCH,), _TIME)).to(noise.device)
    batches = [prompts[i : i + _BATCH] for i in range(0, len(prompts), _BATCH)]
    each = [
        original.denoise(
            noise.expand(len(b), *noise.shape[1:]), times[: len(b)], original.encode(b)
        )
        for b in batches
    ]
    return torch.cat(each).float().flatten(1)
