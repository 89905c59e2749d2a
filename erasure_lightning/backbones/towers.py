"""Text towers: a text encoder with its tokenizer, and the layer that the denoiser reads."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from erasure_lightning.backbones.conditioning import (
    CONCEPT,
    END,
    PADDING,
    START,
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
        spans = [(p.start, p.stop) if isinstance(p, Phrase) else (0, 0) for p in prompts]
        tokens = self.tokenizer(
            texts,
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
                    f" {text[start:stop]!r} behind the last of them in {text!r}. Shorten the"
                    " sentence."
                )
        return zip(tokens.input_ids, roles, strict=True)

    def too_long(self, prompts: Sequence[str]) -> list[str]:
        """Prompts that have more tokens than are read."""
        most = self.length
        some = [p for p in prompts if len(p.encode()) + 2 > most]  # a token spells a byte at least
        rows = self.tokenizer(some).input_ids if some else []
        return [p for p, ids in zip(some, rows, strict=True) if len(ids) > most]

    def words(self) -> Tensor:
        """Ids ``(W,)`` of the tokens that are whole words: their text has the same tokens."""
        ids = torch.arange(len(self.tokenizer))
        spelled = self.tokenizer.batch_decode(ids.unsqueeze(1), skip_special_tokens=True)
        read = self.tokenizer([f"a {word.strip()} a" for word in spelled]).input_ids
        around = self.tokenizer("a a").input_ids
        half = len(around) // 2  # between the two; CLIP has a start token before them, T5 none
        whole = [tokens == [*around[:half], i, *around[half:]] for i, tokens in enumerate(read)]
        return ids[torch.tensor(whole)].to(self.table.device)

    def spell(self, ids: Tensor) -> str:
        """The text of token ids ``(N,)``."""
        return cast(str, self.tokenizer.decode(ids.tolist(), skip_special_tokens=True)).strip()


def _word_roles(offsets: Tensor, spans: Sequence[tuple[int, int]], ends: Tensor) -> Tensor:
    """Roles ``(B, L)`` of words, end token and padding; ``ends`` are positions ``(B, 1)``."""
    start, stop = torch.tensor(spans).unsqueeze(1).unbind(dim=2)
    first, last = offsets.unbind(dim=2)
    roles = torch.full_like(first, TEMPLATE)
    roles[(first < stop) & (last > start) & (last > first)] = CONCEPT
    position = torch.arange(first.shape[1])
    roles[position > ends] = PADDING
    roles[position == ends] = END
    return roles


def _recording(states: list[Tensor]) -> Callable[[nn.Module, Any, Any], None]:
    """A forward hook that appends a block's output to ``states``."""
    return lambda _, __, out: states.append(out[0] if isinstance(out, tuple) else out)


#: State at the end of text that is read beside the tokens: none, that after the final norm, or its
#: projection.
Pooled = Literal["none", "end", "projected"]


class ClipTower(TextTower):
    """A CLIP text encoder.

    Args:
        model: A `CLIPTextModel`, or a `CLIPTextModelWithProjection`.
        tokenizer: Its `CLIPTokenizer`.
        layer: The hidden state that the denoiser reads: -1 the last, after the final norm; -2 the
            one before, without it.
        pooled: The state at the end of text that the denoiser reads too.
    """

    causal = True

    def __init__(
        self, model: nn.Module, tokenizer: Any, *, layer: int = -1, pooled: Pooled = "none"
    ) -> None:
        super().__init__(model, tokenizer)
        self.layer = layer
        self.pooled = pooled

    def encode(self, embedded: EmbeddedPrompts) -> EncoderOutput:
        """Token states ``(B, L, D)`` of `layer`, and the state at the end of text."""
        model = cast(Any, self.model)
        # CLIP's model takes ids alone; a hook on the table is the only way to pass embeddings.
        words = embedded.embeddings.to(self.table.dtype)
        states: list[Tensor] = []
        with ExitStack() as hooks:
            table = model.get_input_embeddings()
            hooks.callback(table.register_forward_hook(lambda *_: words).remove)
            if self.layer != -1:  # `hidden_states` is wrong where two models share layers
                hooks.callback(self._block().register_forward_hook(_recording(states)).remove)
            output = model(input_ids=embedded.ids)
        tokens = output.last_hidden_state if self.layer == -1 else states[0]
        if self.pooled == "none":
            return EncoderOutput(tokens, None)
        end = output.text_embeds if self.pooled == "projected" else output.pooler_output
        return EncoderOutput(tokens, end)

    def _block(self) -> nn.Module:
        """The block whose output the denoiser reads."""
        body = getattr(self.model, "text_model", self.model)
        return cast(nn.Module, cast(Any, body).encoder.layers[self.layer])

    def roles(self, ids: Tensor, offsets: Tensor, spans: Sequence[tuple[int, int]]) -> Tensor:
        """Roles ``(B, L)``: a start token, words, an end token, padding."""
        ends = (ids[:, 1:] == self.tokenizer.eos_token_id).int().argmax(dim=1, keepdim=True) + 1
        roles = _word_roles(offsets, spans, ends)
        roles[:, 0] = START
        return roles

    def read_parameters(self, blocks: int | None = None) -> dict[str, nn.Parameter]:
        """Parameters of the blocks that are read, the final norm and the projection."""
        count = cast(Any, self.model).config.num_hidden_layers
        read = count + 1 + self.layer
        last = read if self.pooled == "none" else count
        first = 0 if blocks is None else max(read - blocks, 0)
        parts = tuple(f"encoder.layers.{i}." for i in range(first, last))
        if self.pooled != "none" or self.layer == -1:
            parts += ("final_layer_norm.",)
        if self.pooled == "projected":
            parts += ("text_projection.",)
        return {
            f"model.{name}": parameter
            for name, parameter in self.model.named_parameters()
            if name.removeprefix("text_model.").startswith(parts)
        }


class T5Tower(TextTower):
    """The encoder of a T5; the denoiser reads all its states, padding included.

    Args:
        model: A `T5EncoderModel`.
        tokenizer: Its tokenizer.
        length: Tokens that are read, padding included.
        masked: Whether no position attends to padding; stock FLUX and SD 3 attend to it.
    """

    causal = False

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        *,
        length: int | None = None,
        masked: bool = False,
    ) -> None:
        super().__init__(model, tokenizer, length=length)
        self.masked = masked

    def encode(self, embedded: EmbeddedPrompts) -> EncoderOutput:
        """States ``(B, L, D)`` after the final norm."""
        model = cast(Any, self.model)
        mask = ~embedded.positions(PADDING) if self.masked else None
        words = embedded.embeddings.to(self.table.dtype)
        output = model(inputs_embeds=words, attention_mask=mask, return_dict=True)
        return EncoderOutput(output.last_hidden_state, None)

    def roles(self, ids: Tensor, offsets: Tensor, spans: Sequence[tuple[int, int]]) -> Tensor:
        """Roles ``(B, L)``: words, an end token, padding; there is no start token."""
        ends = (ids == self.tokenizer.eos_token_id).int().argmax(dim=1, keepdim=True)
        return _word_roles(offsets, spans, ends)

    def read_parameters(self, blocks: int | None = None) -> dict[str, nn.Parameter]:
        """Parameters of the last blocks, without the table of positions, and the final norm."""
        count = cast(Any, self.model).config.num_layers
        first = 0 if blocks is None else max(count - blocks, 0)
        parts = tuple(f"encoder.block.{i}." for i in range(first, count))
        parts += ("encoder.final_layer_norm.",)
        return {
            f"model.{name}": parameter
            for name, parameter in self.model.named_parameters()
            if name.startswith(parts) and "relative_attention_bias" not in name
        }
