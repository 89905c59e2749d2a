"""`Conditioning`: what a denoiser reads of prompts, and what stands where in it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

#: What stands at a token's position.
START, TEMPLATE, CONCEPT, END, PADDING = range(5)


def positions(roles: Tensor, *which: int) -> Tensor:
    """Where one of the roles stands, boolean, of the shape of ``roles``."""
    return torch.isin(roles, torch.tensor(which, device=roles.device))


def concept_span(roles: Tensor, otherwise: Tensor | None = None) -> Tensor:
    """First position of the concept's words and one past their last, ``(B, 2)``.

    Args:
        roles: Roles of one text encoder's positions, ``(B, L)``.
        otherwise: Where the empty span of a prompt without a concept stands, ``(B,)``; 0 by
            default.
    """
    words = (roles == CONCEPT).int()
    length, first = words.sum(dim=1), words.argmax(dim=1)
    start = first if otherwise is None else torch.where(length > 0, first, otherwise)
    return torch.stack((start, start + length), dim=1)


@dataclass(frozen=True)
class Conditioning:
    """What a denoiser reads of a batch of prompts.

    Args:
        tokens: Contextual token states, ``(B, L, D)``, all segments joined as the model joins them.
        roles: What stands at each position (`START`, `TEMPLATE`, `CONCEPT`, `END`, `PADDING`),
            ``(B, L)``.
        ids: Token id of each position, ``(B, L)``; each segment has its own vocabulary.
        segments: Positions that each sequence of tokens takes up; corresponding positions of two
            prompts are looked for inside a segment.
        pooled: A vector that the denoiser reads beside the tokens, ``(B, P)``, where the family has
            one.
        summary: What similarity of meaning is measured in, ``(B, S)``.
    """

    tokens: Tensor
    roles: Tensor
    ids: Tensor
    segments: tuple[slice, ...]
    pooled: Tensor | None
    summary: Tensor

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Conditioning":
        pooled = None if self.pooled is None else change(self.pooled)
        tokens, roles, ids = change(self.tokens), change(self.roles), change(self.ids)
        return Conditioning(tokens, roles, ids, self.segments, pooled, change(self.summary))

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: Any) -> "Conditioning":
        return self._each(lambda value: value[index])

    @classmethod
    def _joined(
        cls, each: "Sequence[Conditioning]", join: Callable[[list[Tensor]], Tensor]
    ) -> "Conditioning":
        first = each[0]
        if any(
            (c.pooled is None) != (first.pooled is None) or c.segments != first.segments
            for c in each
        ):
            raise ValueError(
                "Conditionings of one model are joined; these differ in segments or pooled vector."
            )
        pooled = [c.pooled for c in each if c.pooled is not None]
        tokens, roles, ids = (
            join([getattr(c, name) for c in each]) for name in ("tokens", "roles", "ids")
        )
        summary = join([c.summary for c in each])
        return cls(tokens, roles, ids, first.segments, join(pooled) if pooled else None, summary)

    @classmethod
    def cat(cls, each: "Sequence[Conditioning]") -> "Conditioning":
        """Batches of one model behind each other.

        Raises:
            ValueError: If only some have a pooled vector, or their segments differ.
        """
        return cls._joined(each, torch.cat)

    @classmethod
    def stack(cls, each: "Sequence[Conditioning]") -> "Conditioning":
        """Single prompts, tokens ``(L, D)`` each, as a batch; raises as `cat`."""
        return cls._joined(each, torch.stack)

    def clone(self) -> "Conditioning":
        """The same values in memory of their own."""
        return self._each(Tensor.clone)

    def where(self, rows: Tensor, other: "Conditioning") -> "Conditioning":
        """These prompts where ``rows`` ``(B,)`` is true, and those of ``other``, a batch of 1 or
        ``B``, elsewhere.
        """
        everywhere = other.expand(len(self)) if len(other) == 1 else other
        both = Conditioning.cat([self, everywhere])
        count = torch.arange(len(self), device=rows.device)
        return both[torch.where(rows, count, count + len(self)).to(self.tokens.device)]

    def with_tokens(self, tokens: Tensor) -> "Conditioning":
        """The same prompts with other token states, ``(B, L, D)``; the pooled vector stays."""
        return replace(self, tokens=tokens)

    @property
    def nbytes(self) -> int:
        """Memory it takes, in bytes."""
        values = (self.tokens, self.roles, self.ids, self.summary, self.pooled)
        return sum(value.nbytes for value in values if value is not None)

    def expand(self, count: int) -> "Conditioning":
        """A single prompt's conditioning for a batch of ``count``."""
        return self._each(lambda value: value.expand(count, *value.shape[1:]))

    def repeat(self, count: int) -> "Conditioning":
        """The whole batch ``count`` times behind itself."""
        return self._each(lambda value: value.repeat(count, *[1] * (value.dim() - 1)))

    def positions(self, *roles: int) -> Tensor:
        """Where one of the roles stands, boolean ``(B, L)``."""
        return positions(self.roles, *roles)

    def from_concept(self) -> Tensor:
        """Positions that depend on the concept's words, ``(B, L)``: from the words on, in every
        segment.

        What stands before them is the same for every concept in a causal encoder.
        """
        return self._inside(lambda place, span: place >= span[:, :1])

    def behind_concept(self) -> Tensor:
        """Positions behind the concept's words, end of text and padding included, ``(B, L)``."""
        return self._inside(lambda place, span: place >= span[:, 1:])

    def from_end(self) -> Tensor:
        """Distance of each position from its segment's end-of-text token, negative before it, ``(B,
        L)``.
        """
        parts = []
        for segment in self.segments:
            roles = self.roles[:, segment]
            place = torch.arange(roles.shape[1], device=roles.device)
            parts.append(place - (roles == END).int().argmax(dim=1, keepdim=True))
        return torch.cat(parts, dim=1)

    def _inside(self, where: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        parts = []
        for segment in self.segments:
            roles = self.roles[:, segment]
            place = torch.arange(roles.shape[1], device=roles.device)
            parts.append(where(place, concept_span(roles)))
        return torch.cat(parts, dim=1)
