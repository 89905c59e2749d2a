"""Domain mining: words for which a model predicts as for a concept.

With ``eps*`` the original, ``s*`` its summary of a prompt, ``p(w)`` a sentence with the word ``w``,
``p()`` the sentence without one, and ``D(w) = eps*(p(w)) - eps*(p())`` at pure noise ``n``,

    ``domain(c) = { w : median over n of cos( D(w), D(c) ) >= b }``

among the ``K`` of the tokenizer's whole words of nearest ``s*(p(w))``, and as many of a list: a
word of several tokens is as likely to evoke the concept (*bunny* a rabbit, *toadstool* a mushroom).

Reconstructed: SAGE (arXiv 2506.09363) erases a concept's domain; how words of it are obtained is
ours. Text states alone do not tell them: on the emoji world *death*, which gives a skull, is 186th
among the words near *skull*, after *ghost*, which gives a ghost.

Cost: a forward of the text encoder for each word, once, and for each concept ``2 K`` forwards of
the text encoder and of the denoiser, and three more of both for each word that the first noise does
not rule out.
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

#: How far below ``b`` a word may be at the first noise to be compared at the others too.
_MARGIN = 0.2

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
    little with a style to distinguish words.

    Args:
        original: The frozen original.
        concepts: The concepts.
        similarity: Least cosine ``b`` of predictions, in 0..1.
        candidates: Number ``K`` of the tokenizer's whole words, and of ``more``, whose predictions
            are compared, at least 1.
        more: Words and phrases beside the tokenizer's whole words.
    """
    vocabulary = Vocabulary(original.world, concepts)
    names = [name for c in concepts for name in (c.name, c.anchor)]
    sources = _sources(original, more, set(map(folded, (*names, *vocabulary.others))))

    @cache  # concepts of one kind share it
    def summaries(template: str) -> list[Tensor]:
        return [_summaries(original, _sentences(template, words)) for words in sources]

    domains = list[list[str]]()
    for concept in concepts:
        if concept.kind == "style" or not sources:
            domains.append([])
            continue
        template = vocabulary.templates(concept.kind)[_TEMPLATE]
        own = _summaries(original, _sentences(template, [concept.name]))
        near = [
            words[i]
            for words, others in zip(sources, summaries(template), strict=True)
            for i in _nearest(own, others, candidates)
        ]
        similarities = _similarities(original, template, concept.name, near, similarity - _MARGIN)
        ranked = sorted(similarities, key=lambda word: similarities[word], reverse=True)
        domains.append([word for word in ranked if similarities[word] >= similarity])
    return domains


def _sources(original: Backbone, more: Sequence[str], excluded: set[str]) -> list[list[str]]:
    """Words that the tokenizer has whole, and further ones, without the excluded."""
    spelled = (original.spell(token[None]).strip() for token in original.words())
    whole = dict.fromkeys(filter(str.isalpha, spelled))
    # Sentences are padded to the longest of a batch, so words of equal length are encoded together.
    listed = sorted({word for word in more if word not in whole}, key=lambda w: (len(w), w))
    sources = [[w for w in words if folded(w) not in excluded] for words in (whole, listed)]
    return [words for words in sources if words]


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
    original: Backbone, template: str, name: str, words: Sequence[str], least: float
) -> dict[str, float]:
    """Medians of ``cos( D(w), D(c) )`` over the noises, by word.

    Args:
        original: The frozen original.
        template: A sentence with ``{}``.
        name: The concept ``c``.
        words: The words ``w``.
        least: Least cosine at the first noise; words below it are left out.
    """
    first, *others = _SEEDS
    cosines = _cosines(original, template, name, words, first)
    near = [word for word, cosine in zip(words, cosines.tolist(), strict=True) if cosine >= least]
    if not near:
        return {}
    each = [_cosines(original, template, name, near, seed) for seed in others]
    medians = torch.stack([cosines[cosines >= least], *each]).quantile(0.5, dim=0)
    return dict(zip(near, medians.tolist(), strict=True))


def _cosines(
    original: Backbone, template: str, name: str, words: Sequence[str], seed: int
) -> Tensor:
    """``cos( D(w), D(c) )`` ``(N,)`` of words and a concept at a noise."""
    predictions = _predictions(original, _sentences(template, ["", name, *words]), seed)
    directions = predictions[1:] - predictions[0]
    return cosine_similarity(directions[1:], directions[:1])


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
