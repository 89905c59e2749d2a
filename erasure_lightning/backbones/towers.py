"""Text towers: a text encoder with its tokenizer, and the layer that the denoiser reads."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from erasure_lightning.backbones.conditioning import (
    CONCEPT,
    END,
    PADDING,
    TEMPLATE,
    positions,
)
from erasure_lightning.concepts.concept import Phrase
from erasure_lightning.errors import ErasureError

#: Capacity of the cache of tokenized prompts.
_MAX_TOKENIZED = 4096


@dataclass(frozen=True)
class EmbeddedPrompts:
    """Prompts as input embeddings of one text tower.

    Args:
        embeddings: Token embeddings without positions, ``(B, L, E)``.
        ids: Token ids, ``(B, L)``.
        roles: Role of each token (`START`, `TEMPLATE`, `CONCEPT`, `END`, `PADDING`), ``(B, L)``.
    """

    embeddings: Tensor
    ids: Tensor
    roles: Tensor

    @property
    def ends(self) -> Tensor:
        """Position of each prompt's end-of-text token, ``(B,)``."""
        return (self.roles == END).int().argmax(dim=1)

    def positions(self, *roles: int) -> Tensor:
        """Mask of the positions that have one of the roles, boolean ``(B, L)``."""
        return positions(self.roles, *roles)

    def mean_state(self, states: Tensor) -> Tensor:
        """The mean ``(B, D)`` of token states ``(B, L, D)`` over all positions but padding."""
        read = ~self.positions(PADDING)[:, :, None]
        return (states * read).sum(dim=1) / read.sum(dim=1)

    def with_embeddings(self, embeddings: Tensor, *roles: int) -> "EmbeddedPrompts":
        """The prompts with other embeddings at the positions that have one of the roles.

        Args:
            embeddings: ``(B, L, E)``, or of a shape that is broadcast to it.
            roles: The roles.
        """
        where = self.positions(*roles).unsqueeze(2)
        new = torch.where(where, embeddings.to(self.embeddings), self.embeddings)
        return replace(self, embeddings=new)

    def to(self, device: torch.device) -> "EmbeddedPrompts":
        """The prompts on a device."""
        each = (self.embeddings, self.ids, self.roles)
        return EmbeddedPrompts(*(value.to(device) for value in each))

    def truncated(self, length: int) -> "EmbeddedPrompts":
        """The first ``length`` positions."""
        return EmbeddedPrompts(
            self.embeddings[:, :length], self.ids[:, :length], self.roles[:, :length]
        )


class EncoderOutput(NamedTuple):
    """A tower's output.

    Args:
        tokens: States of the layer that the model reads, ``(B, L, D)``.
        pooled: State at the end of text, ``(B, P)``, if the model reads it.
    """

    tokens: Tensor
    pooled: Tensor | None

    def to(self, dtype: torch.dtype) -> "EncoderOutput":
        """The output in another precision."""
        return EncoderOutput(
            self.tokens.to(dtype), None if self.pooled is None else self.pooled.to(dtype)
        )


class TextTower(nn.Module, ABC):
    """A text encoder with its tokenizer.

    Args:
        model: A text encoder of transformers.
        tokenizer: Its tokenizer.
        length: Tokens that are read, padding included; by default as many as the tokenizer says.
    """

    #: Whether a position attends only to those before it, so that padding can be left out.
    causal: bool

    def __init__(self, model: nn.Module, tokenizer: Any, *, length: int | None = None) -> None:
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        most: int = tokenizer.model_max_length
        self.length = most if length is None else min(length, most)
        self._tokenized: dict[str | Phrase, tuple[Tensor, Tensor]] = {}

    @property
    def table(self) -> Tensor:
        """The token embeddings ``(V, E)``, frozen."""
        return cast(Tensor, cast(Any, self.model).get_input_embeddings().weight).detach()

    @abstractmethod
    def encode(self, embedded: EmbeddedPrompts) -> EncoderOutput:
        """Runs the encoder on input embeddings."""

    @abstractmethod
    def read_parameters(self, blocks: int | None = None) -> dict[str, nn.Parameter]:
        """Parameters before the layer that is read, by name, without token and position tables.

        Args:
            blocks: Number of blocks, counted backwards from the layer that is read; all by default.
        """

    @abstractmethod
    def roles(self, ids: Tensor, offsets: Tensor, spans: Sequence[tuple[int, int]]) -> Tensor:
        """Roles ``(B, L)`` of tokenized prompts.

        Args:
            ids: Token ids, ``(B, L)``.
            offsets: First character of each token and one past its last, ``(B, L, 2)``.
            spans: Characters of each prompt's concept.
        """

    def as_read(self, text: str) -> str:
        """A text as the stock pipeline gives it to the tokenizer."""
        return text

    def embed(self, prompts: Sequence[str | Phrase], dtype: torch.dtype) -> EmbeddedPrompts:
        """Looks up the token embeddings of prompts, padded to `length`.

        Raises:
            ErasureError: If a concept's words fall behind the last position.
        """
        if len(self._tokenized) > _MAX_TOKENIZED:
            self._tokenized.clear()
        if new := [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._tokenized]:
            self._tokenized.update(zip(new, self._tokenize(new), strict=True))
        rows = zip(*(self._tokenized[prompt] for prompt in prompts), strict=True)
        ids, roles = (torch.stack(row).to(self.table.device) for row in rows)
        return EmbeddedPrompts(self.table[ids].to(dtype), ids, roles)

    def _tokenize(self, prompts: Sequence[str | Phrase]) -> Iterable[tuple[Tensor, Tensor]]:
        """Ids and roles ``(L,)`` of each prompt."""
        texts = [p.text if isinstance(p, Phrase) else p for p in prompts]
        spans = [self._span(p) if isinstance(p, Phrase) else (0, 0) for p in prompts]
        tokens = self.tokenizer(
            [self.as_read(text) for text in texts],
            padding="max_length",
            max_length=self.length,
            truncation=True,
            return_offsets_mapping=True,
            return_tensors="pt",
        )
        roles = self.roles(tokens.input_ids, tokens.offset_mapping, spans)
        for text, (start, stop), row in zip(texts, spans, roles, strict=True):
            if stop > start and not (row == CONCEPT).any():
                raise ErasureError(
                    f"The text encoder reads {self.length} tokens; found"
                    f" {self.as_read(text)[start:stop]!r} behind the last of them in {text!r}."
                    " Shorten the sentence."
                )
        return zip(tokens.input_ids, roles, strict=True)

    def _span(self, phrase: Phrase) -> tuple[int, int]:
        """Characters of the concept in the text as it is read, which may differ in length."""
        start, stop = (len(self.as_read(phrase.text[:end])) for end in (phrase.start, phrase.stop))
        return start, stop

    def too_long(self, prompts: Sequence[str]) -> list[str]:
        """Prompts that have more tokens than are read."""
        most = self.length
        read = {prompt: self.as_read(prompt) for prompt in prompts}
        some = [p for p in prompts if len(read[p].encode()) + 2 > most]  # a token is a byte or more
        rows = self.tokenizer([read[p] for p in some]).input_ids if some else []
        return [p for p, ids in zip(some, rows, strict=True) if len(ids) > most]

    def words(self) -> Tensor:
        """Ids ``(W,)`` of the tokens that are whole words: their text has the same tokens."""
        ids = torch.arange(len(self.tokenizer))
        spelled = self.tokenizer.batch_decode(ids.unsqueeze(1), skip_special_tokens=True)
        texts = [self.as_read(f"a {word.strip()} a") for word in spelled]
        read = self.tokenizer(texts).input_ids
        around = self.tokenizer("a a").input_ids
        half = len(around) // 2  # between the two; CLIP has a start token before them, T5 none
        whole = [tokens == [*around[:half], i, *around[half:]] for i, tokens in enumerate(read)]
        return ids[torch.tensor(whole)].to(self.table.device)

    def spell(self, ids: Tensor) -> str:
        """The text of token ids ``(N,)``."""
        return cast(str, self.tokenizer.decode(ids.tolist(), skip_special_tokens=True)).strip()


def word_roles(offsets: Tensor, spans: Sequence[tuple[int, int]], ends: Tensor) -> Tensor:
    """Roles ``(B, L)`` of words, end token and padding; ``ends`` are positions ``(B, 1)``."""
    start, stop = torch.tensor(spans).unsqueeze(1).unbind(dim=2)
    first, last = offsets.unbind(dim=2)
    roles = torch.full_like(first, TEMPLATE)
    roles[(first < stop) & (last > start) & (last > first)] = CONCEPT
    position = torch.arange(first.shape[1])
    roles[position > ends] = PADDING
    roles[position == ends] = END
    return roles
