"""Records the probabilities with which pixels attend to text."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from math import sqrt
from typing import Any

import torch
from torch import Tensor, nn

_Maps = dict[str, Tensor]


class _Recorder:
    """A diffusers attention processor that stores its probabilities, with their gradients."""

    def __init__(self, name: str, maps: _Maps) -> None:
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


class _JointRecorder:
    """The stock processor of a joint attention, and the pixels' probabilities of text tokens.

    Queries and keys are computed once more for them, so that the output remains bit-equal.
    """

    def __init__(self, name: str, maps: _Maps, processor: Callable[..., Any]) -> None:
        self.name = name
        self.maps = maps
        self.processor = processor

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Any:
        query = _by_head(attn.to_q(hidden_states), attn.heads, attn.norm_q)
        pixels = _by_head(attn.to_k(hidden_states), attn.heads, attn.norm_k)
        words = _by_head(attn.add_k_proj(encoder_hidden_states), attn.heads, attn.norm_added_k)
        key = torch.cat((words, pixels), dim=1)
        count = words.shape[1]
        options = {}
        if image_rotary_emb is not None:
            from diffusers.models.embeddings import apply_rotary_emb

            options["image_rotary_emb"] = image_rotary_emb
            of_pixels = tuple(turns[count:] for turns in image_rotary_emb)
            query = apply_rotary_emb(query, of_pixels, sequence_dim=1)
            key = apply_rotary_emb(key, image_rotary_emb, sequence_dim=1)
        scores = torch.einsum("bphd,bnhd->bhpn", query.float(), key.float())
        probabilities = (scores / sqrt(query.shape[-1])).softmax(dim=-1)
        self.maps[self.name] = probabilities[..., :count]
        return self.processor(attn, hidden_states, encoder_hidden_states, attention_mask, **options)


def _by_head(projected: Tensor, heads: int, norm: nn.Module | None) -> Tensor:
    """Queries or keys ``(B, N, D)`` by head, ``(B, N, heads, D / heads)``, normed if it has one."""
    divided = projected.reshape(*projected.shape[:2], heads, -1)
    normed: Tensor = divided if norm is None else norm(divided)
    return normed


def record_attention(denoiser: nn.Module, ending: str) -> AbstractContextManager[_Maps]:
    """Collects the probabilities ``(B, heads, pixels, L)`` of the last forward, by layer.

    Args:
        denoiser: A diffusers UNet or transformer.
        ending: Suffix of the layers' names, ``attn2`` for cross-attention.
    """
    layers = {name: module for name, module in denoiser.named_modules() if name.endswith(ending)}
    return _recording(layers, lambda name, maps, _: _Recorder(name, maps))


def record_joint_attention(denoiser: nn.Module) -> AbstractContextManager[_Maps]:
    """Collects the probabilities ``(B, heads, pixels, L)`` of joint attention, by layer.

    The probabilities of a pixel sum to less than 1: the rest is its attention to other pixels.

    Args:
        denoiser: A diffusers transformer, of FLUX or Stable Diffusion 3.
    """
    return _recording(joint_attention_layers(denoiser), _JointRecorder)


def joint_attention_layers(denoiser: nn.Module) -> dict[str, nn.Module]:
    """The joint attentions of a diffusers transformer in which text has keys of its own, by name.

    FLUX's single blocks, whose text and pixels pass the same layers, are left out.
    """
    return {
        name: module
        for name, module in denoiser.named_modules()
        if isinstance(getattr(module, "add_k_proj", None), nn.Module)
    }


@contextmanager
def _recording(
    layers: Mapping[str, Any], recorder: Callable[[str, _Maps, Callable[..., Any]], Any]
) -> Iterator[_Maps]:
    """Puts a recorder into each layer, and its own processor back."""
    before = {name: layer.processor for name, layer in layers.items()}
    maps: _Maps = {}
    for name, layer in layers.items():
        layer.processor = recorder(name, maps, before[name])
    try:
        yield maps
    finally:
        for name, layer in layers.items():
            layer.processor = before[name]
