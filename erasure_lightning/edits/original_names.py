"""Where a diffusers parameter lies in the layout of its model's authors: one map for each family.

A layer of FLUX.1 or Stable Diffusion 3 may be several rows of a layer there: queries, keys and
values are one matrix. The maps are those that `diffusers.loaders.single_file_utils` reads by
(diffusers 0.42.1), turned round.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from erasure_lightning.edits.format import plain_name

#: Layer of the original -> the diffusers layers whose rows it holds, in their order.
_FLUX: dict[str, tuple[str, ...]] = {
    "img_in": ("x_embedder",),
    "txt_in": ("context_embedder",),
    "time_in.in_layer": ("time_text_embed.timestep_embedder.linear_1",),
    "time_in.out_layer": ("time_text_embed.timestep_embedder.linear_2",),
    "vector_in.in_layer": ("time_text_embed.text_embedder.linear_1",),
    "vector_in.out_layer": ("time_text_embed.text_embedder.linear_2",),
    "guidance_in.in_layer": ("time_text_embed.guidance_embedder.linear_1",),
    "guidance_in.out_layer": ("time_text_embed.guidance_embedder.linear_2",),
    "double_blocks.{}.img_mod.lin": ("transformer_blocks.{}.norm1.linear",),
    "double_blocks.{}.txt_mod.lin": ("transformer_blocks.{}.norm1_context.linear",),
    "double_blocks.{}.img_attn.qkv": (
        "transformer_blocks.{}.attn.to_q",
        "transformer_blocks.{}.attn.to_k",
        "transformer_blocks.{}.attn.to_v",
    ),
    "double_blocks.{}.txt_attn.qkv": (
        "transformer_blocks.{}.attn.add_q_proj",
        "transformer_blocks.{}.attn.add_k_proj",
        "transformer_blocks.{}.attn.add_v_proj",
    ),
    "double_blocks.{}.img_attn.proj": ("transformer_blocks.{}.attn.to_out.0",),
    "double_blocks.{}.txt_attn.proj": ("transformer_blocks.{}.attn.to_add_out",),
    "double_blocks.{}.img_attn.norm.query_norm": ("transformer_blocks.{}.attn.norm_q",),
    "double_blocks.{}.img_attn.norm.key_norm": ("transformer_blocks.{}.attn.norm_k",),
    "double_blocks.{}.txt_attn.norm.query_norm": ("transformer_blocks.{}.attn.norm_added_q",),
    "double_blocks.{}.txt_attn.norm.key_norm": ("transformer_blocks.{}.attn.norm_added_k",),
    "double_blocks.{}.img_mlp.0": ("transformer_blocks.{}.ff.net.0.proj",),
    "double_blocks.{}.img_mlp.2": ("transformer_blocks.{}.ff.net.2",),
    "double_blocks.{}.txt_mlp.0": ("transformer_blocks.{}.ff_context.net.0.proj",),
    "double_blocks.{}.txt_mlp.2": ("transformer_blocks.{}.ff_context.net.2",),
    "single_blocks.{}.modulation.lin": ("single_transformer_blocks.{}.norm.linear",),
    "single_blocks.{}.linear1": (
        "single_transformer_blocks.{}.attn.to_q",
        "single_transformer_blocks.{}.attn.to_k",
        "single_transformer_blocks.{}.attn.to_v",
        "single_transformer_blocks.{}.proj_mlp",
    ),
    "single_blocks.{}.linear2": ("single_transformer_blocks.{}.proj_out",),
    "single_blocks.{}.norm.query_norm": ("single_transformer_blocks.{}.attn.norm_q",),
    "single_blocks.{}.norm.key_norm": ("single_transformer_blocks.{}.attn.norm_k",),
    "final_layer.linear": ("proj_out",),
    "final_layer.adaLN_modulation.1": ("norm_out.linear",),
}
_SD3: dict[str, tuple[str, ...]] = {
    "x_embedder.proj": ("pos_embed.proj",),
    "context_embedder": ("context_embedder",),
    "t_embedder.mlp.0": ("time_text_embed.timestep_embedder.linear_1",),
    "t_embedder.mlp.2": ("time_text_embed.timestep_embedder.linear_2",),
    "y_embedder.mlp.0": ("time_text_embed.text_embedder.linear_1",),
    "y_embedder.mlp.2": ("time_text_embed.text_embedder.linear_2",),
    "joint_blocks.{}.x_block.adaLN_modulation.1": ("transformer_blocks.{}.norm1.linear",),
    "joint_blocks.{}.context_block.adaLN_modulation.1": (
        "transformer_blocks.{}.norm1_context.linear",
    ),
    "joint_blocks.{}.x_block.attn.qkv": (
        "transformer_blocks.{}.attn.to_q",
        "transformer_blocks.{}.attn.to_k",
        "transformer_blocks.{}.attn.to_v",
    ),
    "joint_blocks.{}.x_block.attn2.qkv": (
        "transformer_blocks.{}.attn2.to_q",
        "transformer_blocks.{}.attn2.to_k",
        "transformer_blocks.{}.attn2.to_v",
    ),
    "joint_blocks.{}.context_block.attn.qkv": (
        "transformer_blocks.{}.attn.add_q_proj",
        "transformer_blocks.{}.attn.add_k_proj",
        "transformer_blocks.{}.attn.add_v_proj",
    ),
    "joint_blocks.{}.x_block.attn.proj": ("transformer_blocks.{}.attn.to_out.0",),
    "joint_blocks.{}.x_block.attn2.proj": ("transformer_blocks.{}.attn2.to_out.0",),
    "joint_blocks.{}.context_block.attn.proj": ("transformer_blocks.{}.attn.to_add_out",),
    "joint_blocks.{}.x_block.attn.ln_q": ("transformer_blocks.{}.attn.norm_q",),
    "joint_blocks.{}.x_block.attn.ln_k": ("transformer_blocks.{}.attn.norm_k",),
    "joint_blocks.{}.x_block.attn2.ln_q": ("transformer_blocks.{}.attn2.norm_q",),
    "joint_blocks.{}.x_block.attn2.ln_k": ("transformer_blocks.{}.attn2.norm_k",),
    "joint_blocks.{}.context_block.attn.ln_q": ("transformer_blocks.{}.attn.norm_added_q",),
    "joint_blocks.{}.context_block.attn.ln_k": ("transformer_blocks.{}.attn.norm_added_k",),
    "joint_blocks.{}.x_block.mlp.fc1": ("transformer_blocks.{}.ff.net.0.proj",),
    "joint_blocks.{}.x_block.mlp.fc2": ("transformer_blocks.{}.ff.net.2",),
    "joint_blocks.{}.context_block.mlp.fc1": ("transformer_blocks.{}.ff_context.net.0.proj",),
    "joint_blocks.{}.context_block.mlp.fc2": ("transformer_blocks.{}.ff_context.net.2",),
    "final_layer.linear": ("proj_out",),
    "final_layer.adaLN_modulation.1": ("norm_out.linear",),
}

#: By the class of the transformer.
TRANSFORMER_LAYERS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "FluxTransformer2DModel": _FLUX,
    "SD3Transformer2DModel": _SD3,
}

#: Last segment of norms' names in FLUX.1's layout.
_SCALE = ("query_norm", "key_norm")


@dataclass(frozen=True)
class OriginalRows:
    """Rows of a tensor in the original layout that hold a diffusers parameter.

    Args:
        name: The tensor, ``double_blocks.0.img_attn.qkv.weight``.
        start: First row.
        length: Rows of the whole tensor.
        swapped: Whether the two halves are exchanged (shift and scale).
        transposed: Whether the tensor is the matrix's transpose (OpenCLIP's projection).
    """

    name: str
    start: int
    length: int
    swapped: bool = False
    transposed: bool = False

    def write(self, value: Tensor, tensor: Tensor) -> None:
        """Writes a diffusers parameter into its rows of a tensor."""
        value = value.T if self.transposed else value
        value = torch.cat(value.chunk(2)[::-1]) if self.swapped else value
        tensor[self.start : self.start + len(value)] = value.to(tensor)


def parameter_shapes(module: nn.Module) -> dict[str, torch.Size]:
    """Shapes of a component's parameters by `plain_name`, also of layers with LoRAs."""
    return {plain_name(name): value.shape for name, value in module.named_parameters()}


def original_rows(kind: str, name: str, shapes: Mapping[str, torch.Size]) -> OriginalRows | None:
    """Where a transformer's parameter lies in its authors' layout; None if it has no place there.

    Args:
        kind: Class of the transformer, a key of `TRANSFORMER_LAYERS`.
        name: The parameter, ``transformer_blocks.0.attn.to_q.weight``.
        shapes: Shapes of all of the transformer's parameters.
    """
    layer, _, leaf = name.rpartition(".")
    number = re.search(r"(?<=blocks\.)\d+", layer)
    pattern = layer if number is None else layer.replace(f"blocks.{number[0]}", "blocks.{}", 1)
    for original, parts in TRANSFORMER_LAYERS[kind].items():
        if pattern not in parts:
            continue
        index = number[0] if number else ""
        rows = [shapes[f"{part.format(index)}.{leaf}"][0] for part in parts]
        place = parts.index(pattern)
        target = original.format(index)
        leaf = "scale" if target.endswith(_SCALE) and kind.startswith("Flux") else leaf
        # SD 3's last block modulates its context by two vectors, which diffusers swaps.
        swapped = pattern == "norm_out.linear" or (
            pattern.endswith("norm1_context.linear") and _is_last(layer, name, shapes)
        )
        start = sum(rows[:place])
        return OriginalRows(f"{target}.{leaf}", start, sum(rows), swapped)
    return None


def _is_last(layer: str, name: str, shapes: Mapping[str, torch.Size]) -> bool:
    """Whether a context's modulation has two vectors, as in the last block, not six."""
    own = shapes[name.replace(layer, layer.replace("norm1_context", "norm1"))][0]
    return shapes[name][0] < own


def with_text_model(component: str, layer: str, module: nn.Module | None = None) -> str:
    """A CLIP layer's name with the wrapper ``text_model`` that files have and models lost."""
    is_encoder = component.startswith("text_encoder")
    is_t5 = ".block." in f".{layer}." or layer.startswith("shared")
    if not is_encoder or is_t5 or layer.startswith(("text_model.", "text_projection")):
        return layer
    if module is not None and "t5" in type(module).__name__.lower():
        return layer
    return f"text_model.{layer}"
