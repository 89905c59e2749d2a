"""`T5Tower`: T5's encoder."""

from collections.abc import Sequence
from typing import Any, cast

from torch import Tensor, nn

from erasure_lightning.backbones.conditioning import PADDING
from erasure_lightning.backbones.towers import (
    EmbeddedPrompts,
    EncoderOutput,
    TextTower,
    word_roles,
)


class T5Tower(TextTower):
    """The encoder of a T5.

    Args:
        model: A `T5EncoderModel`.
        tokenizer: Its tokenizer.
        length: Tokens that are read, padding included.
        masked: Whether no position attends to padding; stock FLUX and SD 3 attend to it.
        lowercase: Whether the stock pipeline gives the tokenizer prompts in lower case.
    """

    causal = False

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        *,
        length: int | None = None,
        masked: bool = False,
        lowercase: bool = False,
    ) -> None:
        super().__init__(model, tokenizer, length=length)
        self.masked = masked
        self.lowercase = lowercase

    def as_read(self, text: str) -> str:
        """The text, in lower case where the stock pipeline makes it so."""
        return text.lower() if self.lowercase else text

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
        return word_roles(offsets, spans, ends)

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
