"""A component's weights by its authors' names, as ComfyUI's loaders read them from one file."""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from erasure_lightning.edits.components import is_own
from erasure_lightning.edits.format import plain_name
from erasure_lightning.edits.original_names import (
    TRANSFORMER_LAYERS,
    original_rows,
    with_text_model,
)
from erasure_lightning.errors import ErasureError

#: Prefix of a denoiser's tensors in published files, by class; FLUX.1's have none.
_PREFIXES = {
    "UNet2DConditionModel": "model.diffusion_model.",
    "SD3Transformer2DModel": "model.diffusion_model.",
    "FluxTransformer2DModel": "",
}

#: Layers of a UNet outside its blocks.
_UNET = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}

#: Layers of a UNet's residual blocks; those of its attention blocks have the authors' names.
_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}


def original_component(name: str, module: nn.Module) -> dict[str, Tensor]:
    """The weights of a denoiser or text encoder in the layout of published files.

    A UNet and a transformer have the names of their authors' checkpoints. A text encoder has those
    of ``clip_l``, ``clip_g`` and ``t5xxl.safetensors``: transformers' own, CLIP's with the wrapper
    ``text_model``.

    Args:
        name: The component, ``text_encoder_2``.
        module: Its module.

    Raises:
        ErasureError: If the layout has no place for it, or for one of its tensors.
    """
    module = getattr(module, "_orig_mod", module)
    kind = type(module).__name__
    # Tied weights have one place in the file, under their first name.
    names: dict[int, str] = {}
    state = {
        names.setdefault(id(value), plain_name(key)): value.detach()
        for key, value in module.state_dict(keep_vars=True).items()
        if is_own(key)
    }
    if kind in TRANSFORMER_LAYERS:
        named = _transformer(kind, state)
    elif kind in _PREFIXES:
        layers = dict(_unet_layers(module))
        named = {_unet_name(key, layers): value for key, value in state.items()}
    elif "CLIP" in kind or "T5" in kind:
        named = {with_text_model(name, key, module): value for key, value in state.items()}
    else:
        raise _no_place(name, kind)
    prefix = _PREFIXES.get(kind, "")
    return {f"{prefix}{key}": value.cpu().contiguous() for key, value in named.items()}


def _transformer(kind: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A transformer's tensors, several of which may be rows of one."""
    shapes = {name: value.shape for name, value in state.items()}
    named: dict[str, Tensor] = {}
    for name, value in state.items():
        if name == "pos_embed.pos_embed":  # no layer's weight or bias
            named["pos_embed"] = value
            continue
        rows = original_rows(kind, name, shapes)
        if rows is None:
            raise _no_place(name, kind)
        if rows.name not in named:
            named[rows.name] = value.new_empty(rows.length, *value.shape[1:])
        rows.write(value, named[rows.name])
    return named


def _unet_layers(unet: Any) -> Iterator[tuple[str, str]]:
    """Layers and blocks of a UNet, each with its authors' name.

    The authors count the blocks of all resolutions in one row: a residual block with the attention
    behind it is one, a downsampler is one, and an upsampler belongs to the block before it.
    """
    yield from _UNET.items()
    number = 1
    for index, block in enumerate(unet.down_blocks):
        for layer in range(len(block.resnets)):
            yield f"down_blocks.{index}.resnets.{layer}", f"input_blocks.{number}.0"
            yield f"down_blocks.{index}.attentions.{layer}", f"input_blocks.{number}.1"
            number += 1
        if block.downsamplers:
            yield f"down_blocks.{index}.downsamplers.0.conv", f"input_blocks.{number}.0.op"
            number += 1
    for layer in range(len(unet.mid_block.resnets)):
        yield f"mid_block.resnets.{layer}", f"middle_block.{2 * layer}"
        yield f"mid_block.attentions.{layer}", f"middle_block.{2 * layer + 1}"
    number = 0
    for index, block in enumerate(unet.up_blocks):
        for layer in range(len(block.resnets)):
            yield f"up_blocks.{index}.resnets.{layer}", f"output_blocks.{number}.0"
            yield f"up_blocks.{index}.attentions.{layer}", f"output_blocks.{number}.1"
            number += 1
        last = 2 if hasattr(block, "attentions") else 1
        yield f"up_blocks.{index}.upsamplers.0.conv", f"output_blocks.{number - 1}.{last}.conv"


def _unet_name(name: str, layers: Mapping[str, str]) -> str:
    """The authors' name of a UNet's tensor."""
    own = next((layer for layer in layers if name.startswith(f"{layer}.")), None)
    if own is None:
        raise _no_place(name, "UNet2DConditionModel")
    inner, _, leaf = name.removeprefix(f"{own}.").rpartition(".")
    inner = _RESNET.get(inner, inner) if ".resnets." in own else inner
    return ".".join(part for part in (layers[own], inner, leaf) if part)


def _no_place(name: str, kind: str) -> ErasureError:
    return ErasureError(
        f"The original layout needs a place for {name} of {kind}; it has none. Export it as"
        " `component` in the layout diffusers."
    )
