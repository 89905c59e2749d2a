"""Key layouts of LoRA files and of full differences, for diffusers, Kohya's tools and ComfyUI."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from erasure_lightning.edits.changes import Change, LayerFactors
from erasure_lightning.edits.original_names import (
    TRANSFORMER_LAYERS,
    original_rows,
    parameter_shapes,
    with_text_model,
)
from erasure_lightning.errors import ErasureError

#: Text encoders in ComfyUI's state dict, by the pipeline's class and component.
_COMFY_ENCODERS: Mapping[str, Mapping[str, str]] = {
    "StableDiffusionPipeline": {"text_encoder": "clip_l"},
    "StableDiffusionXLPipeline": {"text_encoder": "clip_l", "text_encoder_2": "clip_g"},
    "StableDiffusion3Pipeline": {
        "text_encoder": "clip_l",
        "text_encoder_2": "clip_g",
        "text_encoder_3": "t5xxl",
    },
    "FluxPipeline": {"text_encoder": "clip_l", "text_encoder_2": "t5xxl"},
}

#: Width of the prompts' states in Stable Diffusion 2.x, whose encoder ComfyUI calls ``clip_h``.
_OPEN_CLIP_H = 1024

#: Kohya's prefixes of text encoders; the lone one of Stable Diffusion 1.x has no number.
_KOHYA_ENCODERS = {"text_encoder": "lora_te1", "text_encoder_2": "lora_te2"}

#: Families into which diffusers loads no LoRA.
_WITHOUT_LORA = ("PixArtAlphaPipeline", "PixArtSigmaPipeline")

#: Layers of SDXL's UNet that Kohya's scripts name as its authors do.
_KOHYA_UNET = {
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}

Modules = Mapping[str, nn.Module]


def unread_by_diffusers(modules: Modules, family: str) -> list[str]:
    """Components of which diffusers loads no LoRA: those of T5.

    Raises:
        ErasureError: If it loads no LoRA into the family at all.
    """
    if family in _WITHOUT_LORA:
        raise ErasureError(
            f"The format lora needs a pipeline into which diffusers loads LoRAs; found {family},"
            " which has no load_lora_weights. Export it as `component` or `diffusers`."
        )
    return [name for name, module in modules.items() if type(module).__name__ == "T5EncoderModel"]


def diffusers_lora(factors: Mapping[str, LayerFactors]) -> dict[str, Tensor]:
    """Keys of ``load_lora_weights``: ``unet.<layer>.lora_A.weight``, scaled by 1.

    All layers of a text encoder with a projection get the rank of its largest, with zeros:
    diffusers 0.42.1 does not read the projection's rank and takes the commonest for it.
    """
    tensors = {}
    for name, each in factors.items():
        component, _, layer = name.partition(".")
        if f"{component}.text_projection" in factors:
            own = (other for key, other in factors.items() if key.startswith(f"{component}."))
            each = _padded(each, max(other.rank for other in own))
        key = f"{component}.{with_text_model(component, layer)}"
        tensors[f"{key}.lora_A.weight"] = each.down
        tensors[f"{key}.lora_B.weight"] = each.up
    return tensors


def kohya_lora(
    factors: Mapping[str, LayerFactors], modules: Modules, pipeline: str
) -> dict[str, Tensor]:
    """Keys of Kohya's scripts: ``lora_unet_<layer>.lora_down.weight``, ``.lora_up``, ``.alpha``.

    Queries, keys and values that are one layer there become one block-diagonal adapter. All layers
    get the rank of the largest, with zeros: diffusers 0.42.1 scales text encoders' layers of any
    other rank than the commonest wrongly (its ``alpha_pattern`` names no layer of theirs).

    Args:
        factors: By component and layer.
        modules: The pipeline's components.
        pipeline: Class of the pipeline.

    Raises:
        ErasureError: If Kohya's layout has no place for a component.
    """
    tensors = {}
    joined = _joined(factors, modules, pipeline)
    rank = max(each.rank for each in joined.values())
    for key, each in joined.items():
        padded = _padded(each, rank)
        tensors[f"{key}.lora_down.weight"] = padded.down
        tensors[f"{key}.lora_up.weight"] = padded.up
        tensors[f"{key}.alpha"] = torch.tensor(float(rank))
    return tensors


def full_differences(
    changes: Mapping[str, Change], modules: Modules, pipeline: str
) -> dict[str, Tensor]:
    """Keys of ComfyUI's LoRA loader for differences: ``.diff`` of weights, ``.diff_b`` of biases.

    Source: comfy/lora.py (comfyanonymous/ComfyUI): ``<key>.diff`` is added to the weight of a key,
    ``<key>.diff_b`` to its bias; a key of the denoiser is ``lora_unet_<diffusers name>`` or
    ``diffusion_model.<original name>``, one of a text encoder ``text_encoders.<name>``.

    Args:
        changes: By component and name.
        modules: The pipeline's components.
        pipeline: Class of the pipeline.

    Raises:
        ErasureError: If ComfyUI has no place for a component.
    """
    tensors: dict[str, Tensor] = {}
    for name, change in changes.items():
        component, _, parameter = name.partition(".")
        layer, _, leaf = parameter.rpartition(".")
        end = "diff_b" if leaf == "bias" else "diff"
        kind = type(modules[component]).__name__
        if component == "unet":
            tensors[f"lora_unet_{layer.replace('.', '_')}.{end}"] = change.difference
        elif kind in TRANSFORMER_LAYERS:
            _add_rows(tensors, modules[component], kind, parameter, change, end)
        else:
            encoder = _comfy_encoder(pipeline, component, modules[component])
            layer = with_text_model(component, layer, modules[component])
            tensors[f"text_encoders.{encoder}.transformer.{layer}.{end}"] = change.difference
    return tensors


def _add_rows(
    tensors: dict[str, Tensor],
    module: nn.Module,
    kind: str,
    parameter: str,
    change: Change,
    end: str,
) -> None:
    """Adds a transformer's difference to that of the original layer whose rows it is."""
    rows = original_rows(kind, parameter, parameter_shapes(module))
    if rows is None:
        raise _no_place(f"transformer.{parameter}", "ComfyUI's loader")
    layer, _, leaf = rows.name.rpartition(".")
    key = f"diffusion_model.{layer if leaf in ('weight', 'bias') else rows.name}.{end}"
    difference = change.difference
    if key not in tensors:
        tensors[key] = difference.new_zeros(rows.length, *difference.shape[1:])
    rows.write(difference, tensors[key])


def _joined(
    factors: Mapping[str, LayerFactors], modules: Modules, pipeline: str
) -> dict[str, LayerFactors]:
    """Factors by Kohya's layers, which join some of ours."""
    joined: dict[str, LayerFactors] = {}
    fused: dict[str, dict[int, LayerFactors]] = {}
    lengths: dict[str, int] = {}
    for name, each in factors.items():
        component, _, layer = name.partition(".")
        kind = type(modules[component]).__name__
        if component == "unet":
            layer = _KOHYA_UNET.get(layer, layer)
            joined[f"lora_unet_{layer.replace('.', '_')}"] = each
        elif kind in TRANSFORMER_LAYERS:
            rows = original_rows(kind, f"{layer}.weight", parameter_shapes(modules[component]))
            if rows is None or rows.swapped:
                raise _no_place(name, "Kohya's layout")
            key = "lora_unet_" + rows.name.removesuffix(".weight").replace(".", "_")
            fused.setdefault(key, {})[rows.start] = each
            lengths[key] = rows.length
        else:
            prefix = "lora_te" if pipeline == "StableDiffusionPipeline" else None
            prefix = prefix or _KOHYA_ENCODERS.get(component)
            layer = with_text_model(component, layer, modules[component])
            if prefix is None or not layer.startswith("text_model."):
                raise _no_place(name, "Kohya's layout")
            joined[f"{prefix}_{layer.replace('.', '_')}"] = each
    return joined | {key: _block_diagonal(parts, lengths[key]) for key, parts in fused.items()}


def _block_diagonal(parts: Mapping[int, LayerFactors], length: int) -> LayerFactors:
    """One adapter of several, each of which writes rows of its own."""
    ordered = [(start, parts[start]) for start in sorted(parts)]
    down = torch.cat([each.down for _, each in ordered])
    up = down.new_zeros(length, len(down))
    column = 0
    for start, each in ordered:
        up[start : start + len(each.up), column : column + each.rank] = each.up
        column += each.rank
    return LayerFactors(down, up)


def _padded(factors: LayerFactors, rank: int) -> LayerFactors:
    """The same product at a larger rank, with zeros."""
    down = factors.down
    up = factors.up
    missing = rank - factors.rank
    zeros = down.new_zeros(missing, *down.shape[1:]), up.new_zeros(len(up), missing, *up.shape[2:])
    return LayerFactors(torch.cat((down, zeros[0])), torch.cat((up, zeros[1]), dim=1))


def _comfy_encoder(pipeline: str, component: str, module: nn.Module) -> str:
    encoder = _COMFY_ENCODERS.get(pipeline, {}).get(component)
    if encoder is None:
        raise _no_place(component, "ComfyUI's loader")
    return "clip_h" if _is_second_generation(pipeline, module) else encoder


def _is_second_generation(pipeline: str, module: nn.Module) -> bool:
    """Whether a component is of Stable Diffusion 2.x."""
    config = getattr(module, "config", None)
    widths = (getattr(config, name, None) for name in ("hidden_size", "cross_attention_dim"))
    return pipeline == "StableDiffusionPipeline" and _OPEN_CLIP_H in widths


def _no_place(name: str, layout: str) -> ErasureError:
    return ErasureError(
        f"The edit needs a format with a place for {name}; {layout} has none. Export it as"
        " `component` or `diffusers`."
    )


def kohya_metadata(
    tensors: Mapping[str, Tensor], title: str, modules: Modules, pipeline: str
) -> dict[str, str]:
    """What Kohya's tools and A1111 read of a LoRA file.

    A1111 lists a LoRA for models of its version alone (``Lora/network.py``, ``detect_version``):
    SDXL by ``ss_base_model_version``, Stable Diffusion 2.x by ``ss_v2``, else 1.x.
    """
    rank = next(str(int(value)) for name, value in tensors.items() if name.endswith(".alpha"))
    second = any(_is_second_generation(pipeline, module) for module in modules.values())
    versions = {
        "StableDiffusionPipeline": "sd_v2" if second else "sd_v1",
        "StableDiffusionXLPipeline": "sdxl_base_v1-0",
        "FluxPipeline": "flux1",
    }
    version = {"ss_base_model_version": versions[pipeline]} if pipeline in versions else {}
    return {
        "ss_network_module": "networks.lora",
        "ss_network_dim": rank,
        "ss_network_alpha": rank,
        "ss_v2": str(second),
        **version,
        "ss_output_name": re.sub(r"\W+", "-", title).strip("-"),
        "modelspec.title": title,
    }
