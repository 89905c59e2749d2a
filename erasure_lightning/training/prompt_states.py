"""Operations on embedded prompts: gradient ascent, exchange of templates, alignment of spans."""

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
from erasure_lightning.concepts.concept import PromptBatch
from erasure_lightning.errors import ErasureError

#: A batch of prompts, embedded for each text encoder of a backbone.
PromptEmbeddings = tuple[EmbeddedPrompts, ...]

#: First-order gain of a score at most this large may be a rounding error.
_LEAST_GAIN = 1e-5


def gradient_ascent(
    start: PromptEmbeddings,
    score: Callable[[PromptEmbeddings], Tensor],
    sizes: tuple[Tensor, ...],
    steps: int,
) -> PromptEmbeddings:
    """The best prompts on a path of gradient steps of fixed length.

    Only the word embeddings at `TEMPLATE` positions change; start token, concept, end and padding
    stay as they are. A row takes no step whose first-order gain is at most `_LEAST_GAIN`, and the
    best point of each row is returned: a row that starts at an optimum is returned unchanged.

    Args:
        start: Where the ascent begins, a batch of ``B`` prompts.
        score: What is maximised, ``(B,)``.
        sizes: For each text encoder, how far the word that moves farthest moves in a step, ``()``.
        steps: Number of steps, at least 0.
    """
    best = start
    highest = torch.full((len(start[0].ids),), -torch.inf, device=start[0].ids.device)
    prompts = start
    for step in range(steps + 1 if steps else 0):
        last = step == steps
        words = [e.embeddings.detach().requires_grad_(not last) for e in prompts]
        prompts = tuple(replace(e, embeddings=w) for e, w in zip(prompts, words, strict=True))
        with torch.set_grad_enabled(not last):
            scores = score(prompts)
        higher = scores.detach() > highest + _LEAST_GAIN
        best = tuple(_where(higher, a, b) for a, b in zip(prompts, best, strict=True))
        highest = torch.where(higher, scores.detach(), highest)
        if not last:
            gradients = torch.autograd.grad(scores.sum(), words)
            prompts = tuple(
                _ascent_step(e, gradient, size)
                for e, gradient, size in zip(prompts, gradients, sizes, strict=True)
            )
    return best


def _ascent_step(prompts: EmbeddedPrompts, gradient: Tensor, size: Tensor) -> EmbeddedPrompts:
    gradient = gradient * prompts.positions(TEMPLATE).unsqueeze(2)
    longest = gradient.norm(dim=2).amax(dim=1).clamp(min=1e-12)
    scale = size / longest
    gain = scale * gradient.square().sum(dim=(1, 2))
    shift = torch.where(gain > _LEAST_GAIN, scale, 0.0).view(-1, 1, 1) * gradient
    return replace(prompts, embeddings=prompts.embeddings.detach() + shift)


def _where(condition: Tensor, prompts: EmbeddedPrompts, other: EmbeddedPrompts) -> EmbeddedPrompts:
    """Rows of ``prompts`` where the condition ``(B,)`` holds, of ``other`` elsewhere."""
    embeddings = torch.where(
        condition.view(-1, 1, 1), prompts.embeddings.detach(), other.embeddings.detach()
    )
    return replace(prompts, embeddings=embeddings)


def with_random_template(prompts: EmbeddedPrompts, table: Tensor) -> EmbeddedPrompts:
    """The prompts with random words of the vocabulary ``(V, E)`` for their templates' words."""
    words = table[torch.randint(len(table), prompts.ids.shape).to(table.device)]
    return prompts.with_embeddings(words, TEMPLATE)


def with_template_of(prompts: EmbeddedPrompts, other: EmbeddedPrompts) -> EmbeddedPrompts:
    """The prompts with the template words of other prompts and their own concept words.

    Raises:
        ErasureError: If a template is longer in one than in the other, which happens where the
            encoder cuts it short.
    """
    own_template = prompts.positions(TEMPLATE)
    other_template = other.positions(TEMPLATE)
    if not torch.equal(own_template.sum(dim=1), other_template.sum(dim=1)):
        raise ErasureError(
            "The text encoder needs to hold each prompt with the concept and with the anchor; found"
            " one cut short. Shorten the templates, the concept or its anchor."
        )
    embeddings = prompts.embeddings.clone()
    embeddings[own_template] = other.embeddings.detach()[other_template]
    return replace(prompts, embeddings=embeddings)


def aligned_states(states: Conditioning, like: Conditioning) -> Tensor:
    """Token states ``(B, L, D)`` of ``states``, moved to the corresponding positions of ``like``.

    Both have the same sentences but for the concept's words. Positions before the words agree, span
    is aligned with span and end with end, segment by segment.
    """
    segments = [_aligned_segment(states, like, segment) for segment in like.segments]
    positions = torch.cat(segments, dim=1)
    return states.tokens.gather(1, positions.unsqueeze(2).expand_as(states.tokens))


def _aligned_segment(states: Conditioning, like: Conditioning, segment: slice) -> Tensor:
    roles = like.roles[:, segment]
    span = concept_span(roles)
    other_span = concept_span(states.roles[:, segment], otherwise=span[:, 0])
    positions: Tensor = aligned_positions(span, other_span, roles.shape[1]) + segment.start
    return positions


def state_drift(states: Conditioning, original: Conditioning) -> Tensor:
    """Mean squared difference of token states, plus that of pooled vectors if any, a scalar."""
    drift: Tensor = mse_loss(states.tokens, original.tokens)
    if states.pooled is None or original.pooled is None:
        return drift
    return drift + mse_loss(states.pooled, original.pooled)


def last_token_states(
    backbone: Backbone, batch: PromptBatch, source: TextInput, *, tail: bool = False
) -> tuple[Tensor, Tensor]:
    """Inputs at the last token of the concepts' words and of their anchors', ``(N, D)`` both.

    Of tokens one pair in every segment; the last token of empty words is the one before their
    place: the start token where the words are all there is. Of a pooled vector the vector itself.

    Args:
        backbone: The model that encodes the sentences.
        batch: The sentences.
        source: The layers whose input is read.
        tail: Include all positions from there on, end-of-text and padding too, as far as both
            sentences reach and are read.
    """

    def last_pairs(concept: Conditioning, anchor: Conditioning) -> Tensor:
        each = [_last_positions(concept, anchor, segment, tail) for segment in concept.segments]
        pairs = torch.cat(each, dim=1)
        sentence, position, other = pairs
        both = source.read(concept)[sentence, position] & source.read(anchor)[sentence, other]
        return pairs[:, both]

    return _paired_rows(backbone, batch, source, last_pairs)


def _paired_rows(
    backbone: Backbone,
    batch: PromptBatch,
    source: TextInput,
    pairs: Callable[[Conditioning, Conditioning], Tensor],
) -> tuple[Tensor, Tensor]:
    """Inputs of both sentences at ``pairs`` of positions, ``(N, D)`` both; or the pooled vectors.

    Args:
        backbone: The model that encodes the sentences.
        batch: The sentences.
        source: The layers whose input is read.
        pairs: Computes sentence and both positions of every pair, ``(3, N)``.
    """
    concept = backbone.encode(batch.prompts)
    anchor = backbone.encode(batch.anchor_prompts)
    rows = source.rows(concept)
    anchor_rows = source.rows(anchor)
    if source.source == "pooled":
        return rows.flatten(0, 1), anchor_rows.flatten(0, 1)
    sentence, position, anchor_position = pairs(concept, anchor)
    return rows[sentence, position], anchor_rows[sentence, anchor_position]


def _last_positions(
    concept: Conditioning, anchor: Conditioning, segment: slice, tail: bool
) -> Tensor:
    """Sentence and both positions of every pair of `last_token_states` in a segment, ``(3, N)``."""
    span = concept_span(concept.roles[:, segment])
    anchor_span = concept_span(anchor.roles[:, segment], otherwise=span[:, 0])
    last = torch.stack((span[:, 1], anchor_span[:, 1])).sub(1).clamp(min=0)
    length = segment.stop - segment.start
    positions = last.unsqueeze(2) + torch.arange(length if tail else 1, device=last.device)
    inside = (positions < length).all(dim=0)
    sentence = torch.arange(len(span), device=last.device).unsqueeze(1).expand_as(inside)[inside]
    position, anchor_position = (each[inside] + segment.start for each in positions)
    return torch.stack((sentence, position, anchor_position))


def shared_token_states(
    backbone: Backbone, batch: PromptBatch, source: TextInput
) -> tuple[Tensor, Tensor]:
    """Inputs at the tokens that a concept's sentence shares with its anchor's, ``(N, D)`` both.

    These are the longest common prefix, the longest common suffix with the end-of-text token, and
    padding as far as both reach; the words in which they differ are in no pair (MACE's alignment,
    verified in code, Shilin-LU/MACE@057e7a6). Of a pooled vector, which depends on every word, the
    vector itself.
    """

    def shared_pairs(concept: Conditioning, anchor: Conditioning) -> Tensor:
        each = [_shared_positions(concept, anchor, segment) for segment in concept.segments]
        return torch.tensor([pair for pairs in each for pair in pairs]).T

    return _paired_rows(backbone, batch, source, shared_pairs)


def _shared_positions(
    concept: Conditioning, anchor: Conditioning, segment: slice
) -> list[tuple[int, int, int]]:
    """Sentence and both positions of every pair of a segment."""
    pairs = list[tuple[int, int, int]]()
    offset = segment.start
    length = segment.stop - segment.start
    for sentence in range(len(concept)):
        ids = _ids_to_end(concept, sentence, segment)
        anchor_ids = _ids_to_end(anchor, sentence, segment)
        prefix = _common_length(ids, anchor_ids)
        suffix = _common_length(ids[prefix:][::-1], anchor_ids[prefix:][::-1])
        rest = range(len(ids) - suffix, length)
        anchor_rest = range(len(anchor_ids) - suffix, length)
        pairs += [(sentence, i + offset, i + offset) for i in range(prefix)]
        pairs += [
            (sentence, i + offset, j + offset) for i, j in zip(rest, anchor_rest, strict=False)
        ]
    return pairs


def _ids_to_end(conditioning: Conditioning, sentence: int, segment: slice) -> list[int]:
    """Token ids of a sentence up to its end of text, in a segment."""
    ids = conditioning.ids[sentence, segment]
    end = int((conditioning.roles[sentence, segment] == END).int().argmax())
    return cast(list[int], ids[: end + 1].tolist())


def _common_length(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the longest common prefix."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))


def cosine_matrix(rows: Tensor, columns: Tensor) -> Tensor:
    """Cosines of all pairs of vectors, ``(N, D)`` and ``(M, D)`` to ``(N, M)``.

    In float32 at least: autocast would round them by more than an edit changes them.
    """
    precision = torch.promote_types(rows.dtype, torch.float32)
    with torch.autocast(rows.device.type, enabled=False):
        units = (normalize(vectors.to(precision), dim=-1) for vectors in (rows, columns))
        return next(units) @ next(units).mT


def cosine_distance(a: Tensor, b: Tensor) -> Tensor:
    """``1 - cos`` of paired vectors, ``(B, D)`` to ``(B,)``."""
    return 1 - cosine_similarity(a, b, dim=-1)


def masked_mean(values: Tensor, where: Tensor) -> Tensor:
    """Mean over the marked positions ``(B, L)`` of each row, then over rows, a scalar."""
    return ((values * where).sum(dim=1) / where.sum(dim=1).clamp(min=1)).mean()


def aligned_positions(concept: Tensor, anchor: Tensor, length: int) -> Tensor:
    """The position of the anchor's sentence that corresponds to each of the concept's.

    The sentences are equal but for one span. Before it positions agree; inside it the anchor's are
    stretched over the concept's; after it they are shifted by the difference, so that end is
    aligned with end.

    Args:
        concept: First position of the span and one past its last, ``(B, 2)``.
        anchor: The same of the anchor's sentence, ``(B, 2)``; an empty span starts where the
            concept's does.
        length: Positions of a sentence ``L``.

    Returns:
        Positions ``(B, L)``.
    """
    start, stop = concept.unsqueeze(2).unbind(1)
    anchor_start, anchor_stop = anchor.unsqueeze(2).unbind(1)
    position = torch.arange(length, device=concept.device)
    share = (position - start) / (stop - start - 1).clamp(min=1)
    offset = (share * (anchor_stop - anchor_start - 1).clamp(min=0)).round().long()
    inside = anchor_start + offset
    after = position + (anchor_stop - anchor_start) - (stop - start)
    from_start = torch.where(position < stop, inside, after)
    return torch.where(position < start, position, from_start).clamp(0, length - 1)
