"""`ClipTower`: CLIP's text encoder."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from itertools import count, takewhile
from typing import Any, Literal, cast

from torch import Tensor, nn

from erasure_lightning.backbones.conditioning import START
from erasure_lightning.backbones.towers import (
    EmbeddedPrompts,
    EncoderOutput,
    TextTower,
    word_roles,
)


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

    def as_read(self, text: str) -> str:
        """The text with all tokens of a textual inversion that has several vectors.

        The inversion ``<name>`` has the tokens ``<name>``, ``<name>_1``, ``<name>_2``, ...
        """
        added = self.tokenizer.added_tokens_encoder
        for token in added:
            if f"{token}_1" in added and token in self.tokenizer.tokenize(text):
                numbered = (f"{token}_{number}" for number in count(1))
                others = takewhile(added.__contains__, numbered)
                text = text.replace(token, " ".join((token, *others)))
        return text

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
        roles = word_roles(offsets, spans, ends)
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
