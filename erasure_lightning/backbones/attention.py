"""Records the probabilities of cross-attention layers."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


class _Recorder:
    """A diffusers attention processor that stores its probabilities, with their gradients."""

    def __init__(self, name: str, maps: dict[str, Tensor]) -> None:
        self.name = name
        self.maps = maps

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        words = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query = attn.head_to_batch_dim(attn.to_q(hidden_states))
        key, value = (attn.head_to_batch_dim(to(words)) for to in (attn.to_k, attn.to_v))
        mask = attn.prepare_attention_mask(attention_mask, words.shape[1], len(words))
        probabilities = attn.get_attention_scores(query, key, mask)
        self.maps[self.name] = probabilities.float().unflatten(0, (len(hidden_states), attn.heads))
        mixed: Tensor = attn.to_out[0](attn.batch_to_head_dim(probabilities @ value))
        dropped: Tensor = attn.to_out[1](mixed)
        return dropped


@contextmanager
def record_attention(denoiser: nn.Module, ending: str) -> Iterator[dict[str, Tensor]]:
    """Collects the attention probabilities ``(B, heads, pixels, L)`` of the last forward, by layer.

    Args:
        denoiser: A diffusers UNet or transformer.
        ending: Suffix of the layers' names, ``attn2`` for cross-attention.
    """
    layers = {name: module for name, module in denoiser.named_modules() if name.endswith(ending)}
    before = {name: layer.processor for name, layer in layers.items()}
    maps: dict[str, Tensor] = {}
    for name, layer in layers.items():
        layer.processor = _Recorder(name, maps)
    try:
        yield maps
    finally:
        for name, layer in layers.items():
            layer.processor = before[name]
