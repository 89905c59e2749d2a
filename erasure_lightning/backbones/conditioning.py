"""`Conditioning`: what a denoiser reads of prompts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Conditioning:
    """What a denoiser reads of the prompts.

    Args:
        tokens: Contextual token states, ``(B, L, D)``.
        pooled: A summary vector where the family has one, ``(B, P)``.
    """

    tokens: Tensor
    pooled: Tensor | None = None

    def _each(self, change: Any) -> "Conditioning":
        return Conditioning(change(self.tokens), None if self.pooled is None else change(self.pooled))

    def __getitem__(self, index: Any) -> "Conditioning":
        return self._each(lambda v: v[index])

    def __add__(self, other: "Conditioning") -> "Conditioning":
        pooled = None if self.pooled is None or other.pooled is None else torch.cat((self.pooled, other.pooled))
        return Conditioning(torch.cat((self.tokens, other.tokens)), pooled)

    @classmethod
    def stack(cls, each: "Sequence[Conditioning]") -> "Conditioning":
        """What single prompts are said to be, ``(L, D)`` each, as a batch."""
        pooled = [one.pooled for one in each if one.pooled is not None]
        return cls(torch.stack([one.tokens for one in each]), torch.stack(pooled) if pooled else None)

    def copied(self) -> "Conditioning":
        """The same in memory of its own."""
        return self._each(Tensor.clone)

    @property
    def nbytes(self) -> int:
        """Memory it takes."""
        return self.tokens.nbytes + (0 if self.pooled is None else self.pooled.nbytes)

    def expand(self, count: int) -> "Conditioning":
        """A single prompt's conditioning repeated for a batch of ``count``."""
        return self._each(lambda v: v.expand(count, *v.shape[1:]))
