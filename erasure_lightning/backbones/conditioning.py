"""`Conditioning`: encoded prompts, with the role of each token."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

#: Roles of a token; `MISSING` is that of rows in the place of a text encoder that is not there.
START, TEMPLATE, CONCEPT, END, PADDING, MISSING = range(6)


def positions(roles: Tensor, *which: int) -> Tensor:
    """Mask of the positions that have one of the roles, boolean, of the shape of ``roles``."""
    return torch.isin(roles, torch.tensor(which, device=roles.device))


def concept_span(roles: Tensor, otherwise: Tensor | None = None) -> Tensor:
    """First position of the concept's words and one past their last, ``(B, 2)``.

    Args:
        roles: Roles of one text encoder's positions, ``(B, L)``.
        otherwise: Position of the empty span of a prompt without a concept, ``(B,)``; 0 by
            default.
    """
    words = (roles == CONCEPT).int()
    length = words.sum(dim=1)
    first = words.argmax(dim=1)
    start = first if otherwise is None else torch.where(length > 0, first, otherwise)
    return torch.stack((start, start + length), dim=1)


@dataclass(frozen=True)
class Conditioning:
    """A batch of prompts as a denoiser reads them.

    Args:
        tokens: Contextual token states, ``(B, L, D)``, all segments joined as the model joins them.
        roles: Role of each token (`START`, `TEMPLATE`, `CONCEPT`, `END`, `PADDING`, `MISSING`),
            ``(B, L)``.
        ids: Token ids, ``(B, L)``; each segment has its own vocabulary.
        segments: Positions of each sequence of tokens; corresponding positions of two prompts are
            in the same segment.
        pooled: A vector that the denoiser reads beside the tokens, ``(B, P)``, where the family has
            one.
        summary: Vectors whose cosines measure similarity of meaning, ``(B, S)``.
        bidirectional: Numbers of the segments in which a state depends on every word of the prompt
            (T5); in the others it depends on those up to its own (CLIP).
    """

    tokens: Tensor
    roles: Tensor
    ids: Tensor
    segments: tuple[slice, ...]
    pooled: Tensor | None
    summary: Tensor
    bidirectional: tuple[int, ...] = ()

    def _map(self, change: Callable[[Tensor], Tensor]) -> "Conditioning":
        return replace(
            self,
            tokens=change(self.tokens),
            roles=change(self.roles),
            ids=change(self.ids),
            pooled=None if self.pooled is None else change(self.pooled),
            summary=change(self.summary),
        )

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: Any) -> "Conditioning":
        return self._map(lambda value: value[index])

    @classmethod
    def _joined(
        cls, each: "Sequence[Conditioning]", join: Callable[[list[Tensor]], Tensor]
    ) -> "Conditioning":
        first = each[0]
        pooled = [c.pooled for c in each if c.pooled is not None]
        if len(pooled) not in (0, len(each)) or any(c.segments != first.segments for c in each):
            raise ValueError(
                "Conditionings of one model are joined; these differ in segments or pooled vector."
            )
        return replace(
            first,
            tokens=join([c.tokens for c in each]),
            roles=join([c.roles for c in each]),
            ids=join([c.ids for c in each]),
            pooled=join(pooled) if pooled else None,
            summary=join([c.summary for c in each]),
        )

    @classmethod
    def cat(cls, each: "Sequence[Conditioning]") -> "Conditioning":
        """Concatenates batches of one model along the batch dimension.

        Raises:
            ValueError: If only some have a pooled vector, or their segments differ.
        """
        return cls._joined(each, torch.cat)

    @classmethod
    def stack(cls, each: "Sequence[Conditioning]") -> "Conditioning":
        """Stacks single prompts, tokens ``(L, D)`` each, into a batch; raises as `cat`."""
        return cls._joined(each, torch.stack)

    def clone(self) -> "Conditioning":
        """A copy that shares no memory."""
        return self._map(Tensor.clone)

    def where(self, rows: Tensor, other: "Conditioning") -> "Conditioning":
        """These prompts where ``rows`` is true, those of another batch elsewhere.

        Args:
            rows: Boolean, ``(B,)``.
            other: A batch of 1 or ``B``.
        """
        both = Conditioning.cat([self, other.expand(len(self))])
        count = torch.arange(len(self), device=rows.device)
        return both[torch.where(rows, count, count + len(self)).to(self.tokens.device)]

    def with_tokens(self, tokens: Tensor) -> "Conditioning":
        """The same prompts with other token states, ``(B, L, D)``; the pooled vector stays."""
        return replace(self, tokens=tokens)

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        values = (self.tokens, self.roles, self.ids, self.summary, self.pooled)
        return sum(value.nbytes for value in values if value is not None)

    def expand(self, count: int) -> "Conditioning":
        """A single prompt's conditioning for a batch of ``count``; that of ``count`` as it is."""
        return self._map(lambda value: value.expand(count, *value.shape[1:]))

    def repeat(self, count: int) -> "Conditioning":
        """The batch repeated ``count`` times along the batch dimension."""
        return self._map(lambda value: value.repeat(count, *[1] * (value.dim() - 1)))

    def positions(self, *roles: int) -> Tensor:
        """Mask of the positions that have one of the roles, boolean ``(B, L)``."""
        return positions(self.roles, *roles)

    def reads_concept(self) -> Tensor:
        """Mask ``(B, L)`` of the positions whose states depend on the concept's words.

        In a causal segment these are the words and all after them, padding included; in a
        `bidirectional` one all positions; in that of a missing text encoder none.
        """
        return self._by_segment(
            lambda number, position, roles: (
                (position >= concept_span(roles)[:, :1] * (number not in self.bidirectional))
                & (roles != MISSING)
            )
        )

    def around_concept(self) -> Tensor:
        """Mask ``(B, L)`` of the positions that `reads_concept` has and that are not its words."""
        return self.reads_concept() & ~self.positions(CONCEPT)

    def from_end(self) -> Tensor:
        """Offset ``(B, L)`` of each position from its segment's end-of-text token."""
        return self._by_segment(
            lambda _, position, roles: position - (roles == END).int().argmax(dim=1, keepdim=True)
        )

    def _by_segment(self, function: Callable[[int, Tensor, Tensor], Tensor]) -> Tensor:
        """``function(number, positions (L_s,), roles (B, L_s))`` of every segment, joined."""
        parts = []
        for number, segment in enumerate(self.segments):
            roles = self.roles[:, segment]
            position = torch.arange(roles.shape[1], device=roles.device)
            parts.append(function(number, position, roles))
        return torch.cat(parts, dim=1)
