"""What methods do with embedded prompts: gradient ascent over templates, exchange of templates,
alignment of spans.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import takewhile
from typing import cast

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, mse_loss, normalize

from erasure_lightning.backbones.base import Backbone
from erasure_lightning.backbones.conditioning import END, TEMPLATE, Conditioning, concept_span
from erasure_lightning.backbones.interface import TextInput
from erasure_lightning.backbones.towers import EmbeddedPrompts
from erasure_lightning.concepts.concept import Phrase, PromptBatch
from erasure_lightning.errors import ErasureError

#: Prompts as every text encoder of a backbone reads them.
Prompts = tuple[EmbeddedPrompts, ...]

#: Gain of a score, to first order, that rounding errors reach too.
LEAST_GAIN = 1e-5


def gradient_ascent(
    start: Prompts, score: Callable[[Prompts], Tensor], sizes: tuple[Tensor, ...], steps: int
) -> Prompts:
    """Prompts of the highest score among those that gradient steps of fixed length pass through.

    Only the word embeddings at `TEMPLATE` positions move; start, concept, end and padding stay what
    they are. A row takes no step whose gain, to first order, is at most `LEAST_GAIN`, and each
    row's best point is returned: a row that starts at an optimum stays as it is.

    Args:
        start: Where the ascent begins, a batch of ``B`` prompts.
        score: What is maximised, ``(B,)``.
        sizes: For each text encoder, how far the word that moves farthest goes in a step, ``()``.
        steps: How many, at least 0.
    """
    best, highest = start, torch.full((len(start[0].ids),), -torch.inf, device=start[0].ids.device)
    here = start
    for step in range(steps + 1 if steps else 0):
        words = [e.embeddings.detach().requires_grad_(step < steps) for e in here]
        here = tuple(replace(e, embeddings=w) for e, w in zip(here, words, strict=True))
        with torch.set_grad_enabled(step < steps):
            scores = score(here)
        higher = scores.detach() > highest + LEAST_GAIN
        best = tuple(_chosen(higher, a, b) for a, b in zip(here, best, strict=True))
        highest = torch.where(higher, scores.detach(), highest)
        if step < steps:
            gradients = torch.autograd.grad(scores.sum(), words)
            here = tuple(
                _step(e, g, size) for e, g, size in zip(here, gradients, sizes, strict=True)
            )
    return best


def _step(prompts: EmbeddedPrompts, gradient: Tensor, size: Tensor) -> EmbeddedPrompts:
    gradient = gradient * prompts.positions(TEMPLATE).unsqueeze(2)
    longest = gradient.norm(dim=2).amax(dim=1).clamp(min=1e-12)
    scale = size / longest
    gain = scale * gradient.square().sum(dim=(1, 2))
    moved = torch.where(gain > LEAST_GAIN, scale, 0.0).view(-1, 1, 1) * gradient
    return replace(prompts, embeddings=prompts.embeddings.detach() + moved)


def _chosen(where: Tensor, one: EmbeddedPrompts, other: EmbeddedPrompts) -> EmbeddedPrompts:
    """Prompts whose rows are ``one``'s at ``where`` ``(B,)``, and ``other``'s elsewhere."""
    embeddings = torch.where(
        where.view(-1, 1, 1), one.embeddings.detach(), other.embeddings.detach()
    )
    return replace(one, embeddings=embeddings)


def with_random_template(prompts: EmbeddedPrompts, table: Tensor) -> EmbeddedPrompts:
    """The prompts with random words of the vocabulary ``(V, E)`` in their templates' place."""
    words = table[torch.randint(len(table), prompts.ids.shape).to(table.device)]
    return replace(
        prompts,
        embeddings=torch.where(prompts.positions(TEMPLATE).unsqueeze(2), words, prompts.embeddings),
    )


def with_template_of(prompts: EmbeddedPrompts, other: EmbeddedPrompts) -> EmbeddedPrompts:
    """The prompts' own concept words in the other prompts' templates.

    Raises:
        ErasureError: If a template is longer in one than in the other, which happens where the
            encoder cuts it short.
    """
    here, there = prompts.positions(TEMPLATE), other.positions(TEMPLATE)
    if not torch.equal(here.sum(dim=1), there.sum(dim=1)):
        raise ErasureError(
            "The encoder needs to hold each sentence with concept and with anchor; found one cut"
            " short."
        )
    embeddings = prompts.embeddings.clone()
    embeddings[here] = other.embeddings.detach()[there]
    return replace(prompts, embeddings=embeddings)


def aligned_states(states: Conditioning, like: Conditioning) -> Tensor:
    """Token states ``(B, L, D)`` of ``states``, each at the position where ``like`` has what
    corresponds to it.

    Both are the same sentences but for the concept's words: before them positions agree, span meets
    span, end meets end; segment by segment.
    """
    place = torch.cat([_aligned_segment(states, like, segment) for segment in like.segments], dim=1)
    return states.tokens.gather(1, place.unsqueeze(2).expand_as(states.tokens))


def _aligned_segment(states: Conditioning, like: Conditioning, segment: slice) -> Tensor:
    roles = like.roles[:, segment]
    span = concept_span(roles)
    other = concept_span(states.roles[:, segment], otherwise=span[:, 0])
    place: Tensor = aligned(span, other, roles.shape[1]) + segment.start
    return place


def state_drift(now: Conditioning, before: Conditioning) -> Tensor:
    """Mean squared difference of token states, plus that of pooled vectors where the family has
    them, a scalar.
    """
    drift: Tensor = mse_loss(now.tokens, before.tokens)
    if now.pooled is None or before.pooled is None:
        return drift
    return drift + mse_loss(now.pooled, before.pooled)


def last_token_states(
    backbone: Backbone, batch: PromptBatch, source: TextInput, *, tail: bool = False
) -> tuple[Tensor, Tensor]:
    """What a text input reads of the concepts' words and of their anchors', in pairs, ``(N, D)``
    both.

    Of tokens the last of the words, in every segment; empty words have their last token in front of
    where they would
    stand: the start token where they are all there is. Of a pooled vector the vector.

    Args:
        backbone: Whose states.
        batch: The sentences.
        source: The layers that read them.
        tail: Go on from there to the end, end-of-text and padding included, as far as both
            sentences reach.
    """
    concept, anchor = backbone.encode(batch.prompts), backbone.encode(batch.targets)
    if source.source == "pooled":
        return source.rows(concept).flatten(0, 1), source.rows(anchor).flatten(0, 1)
    pairs = [_last_rows(concept, anchor, segment, tail) for segment in concept.segments]
    return torch.cat([c for c, _ in pairs]), torch.cat([a for _, a in pairs])


def _last_rows(
    concept: Conditioning, anchor: Conditioning, segment: slice, tail: bool
) -> tuple[Tensor, Tensor]:
    """`last_token_states` of the tokens of a segment."""
    span = concept_span(concept.roles[:, segment])
    other = concept_span(anchor.roles[:, segment], otherwise=span[:, 0])
    last = torch.stack((span[:, 1], other[:, 1])).sub(1).clamp(min=0)
    length = segment.stop - segment.start
    place = last.unsqueeze(2) + torch.arange(length if tail else 1, device=last.device)
    inside = (place < length).all(dim=0)
    sentence = torch.arange(len(span), device=last.device).unsqueeze(1).expand_as(inside)[inside]
    rows = [each[inside] + segment.start for each in place]
    return concept.tokens[sentence, rows[0]], anchor.tokens[sentence, rows[1]]


def shared_rows(backbone: Backbone, batch: PromptBatch, source: TextInput) -> tuple[Tensor, Tensor]:
    """What a text input reads of the tokens that a concept's sentence shares with its anchor's,
    ``(N, D)`` both.

    The longest common prefix, the longest common suffix with the end-of-text token, and padding as
    far as both reach; the words in which they differ are in no pair (MACE's alignment, verified in
    code, Shilin-LU/MACE@057e7a6). Of a pooled vector, which every word is in, the vector.
    """
    concept, anchor = backbone.encode(batch.prompts), backbone.encode(batch.targets)
    if source.source == "pooled":
        return source.rows(concept).flatten(0, 1), source.rows(anchor).flatten(0, 1)
    pairs = [
        pair for segment in concept.segments for pair in _shared_places(concept, anchor, segment)
    ]
    row, k, a = torch.tensor(pairs).T
    return concept.tokens[row, k], anchor.tokens[row, a]


def _shared_places(
    concept: Conditioning, anchor: Conditioning, segment: slice
) -> list[tuple[int, int, int]]:
    """Sentence and both positions of every pair of a segment."""
    pairs = list[tuple[int, int, int]]()
    length, offset = segment.stop - segment.start, segment.start
    for sentence in range(len(concept)):
        short = [_up_to_end(side, sentence, segment) for side in (concept, anchor)]
        before = _in_common(*short)
        after = _in_common(*(tokens[before:][::-1] for tokens in short))
        behind = zip(*(range(len(tokens) - after, length) for tokens in short), strict=False)
        places = [(place, place) for place in range(before)] + list(behind)
        pairs += [(sentence, k + offset, a + offset) for k, a in places]
    return pairs


def _up_to_end(conditioning: Conditioning, sentence: int, segment: slice) -> list[int]:
    """Token ids of a sentence up to its end of text, in a segment."""
    ids, roles = conditioning.ids[sentence, segment], conditioning.roles[sentence, segment]
    return cast(list[int], ids[: int((roles == END).int().argmax()) + 1].tolist())


def _in_common(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the longest common prefix."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))


def input_gram(
    backbone: Backbone, prompts: Sequence[str | Phrase], source: TextInput, chunk: int = 64
) -> Tensor:
    """``sum k k^T`` over everything that a text input reads of prompts, ``(D, D)`` in float64.

    Args:
        backbone: Whose states.
        prompts: Any number of them.
        source: The layers that read them.
        chunk: How many are encoded at once.
    """
    gram = torch.zeros(source.width, source.width, dtype=torch.float64, device=backbone.device)
    for i in range(0, len(prompts), chunk):
        rows = source.rows(backbone.encode(prompts[i : i + chunk])).flatten(0, 1).double()
        gram += rows.mT @ rows
    return gram


def cosine_matrix(rows: Tensor, columns: Tensor) -> Tensor:
    """Cosines of every row's vector with every column's, ``(N, D)`` and ``(M, D)`` to ``(N, M)``."""
    return normalize(rows, dim=-1) @ normalize(columns, dim=-1).mT


def cosine_distance(a: Tensor, b: Tensor) -> Tensor:
    """``1 - cos`` of paired vectors, ``(B, D)`` to ``(B,)``."""
    return 1 - cosine_similarity(a, b, dim=-1)


def masked_mean(values: Tensor, where: Tensor) -> Tensor:
    """Mean over the marked positions of each row, ``(B, L)`` both, then over rows."""
    return ((values * where).sum(dim=1) / where.sum(dim=1).clamp(min=1)).mean()


def aligned(concept: Tensor, anchor: Tensor, length: int) -> Tensor:
    """Which position of the anchor's sentence stands for each position of the concept's.

    The sentences are equal but for one span. Before it positions agree; inside it the anchor's are
    stretched over the concept's; behind it they are shifted by the difference, so that end meets
    end.

    Args:
        concept: First position of the span and one past its last, ``(B, 2)``.
        anchor: The same of the anchor's sentence, ``(B, 2)``; an empty span starts where the
            concept's does.
        length: Positions of a sentence ``L``.

    Returns:
        Positions ``(B, L)``.
    """
    (start, stop), (first, last) = concept.unsqueeze(2).unbind(1), anchor.unsqueeze(2).unbind(1)
    place = torch.arange(length, device=concept.device)
    share = (place - start) / (stop - start - 1).clamp(min=1)
    inside = first + (share * (last - first - 1).clamp(min=0)).round().long()
    behind = place + (last - first) - (stop - start)
    return torch.where(place < start, place, torch.where(place < stop, inside, behind)).clamp(
        0, length - 1
    )
