"""Writes edited weights into a checkpoint in one file, in its authors' layout.

The file is copied, and the bytes of edited tensors are replaced where they lie: header, order,
precisions and all other tensors stay as they are.
"""

import shutil
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import safe_open
from torch import Tensor, nn

from erasure_lightning.edits.changes import Change
from erasure_lightning.edits.original_names import (
    TRANSFORMER_LAYERS,
    OriginalRows,
    original_rows,
    parameter_shapes,
)
from erasure_lightning.errors import ErasureError
from erasure_lightning.files.safetensors_file import require_safetensors, stored_tensors
from erasure_lightning.files.writing import replacing

#: Prefixes of a transformer's tensors.
_TRANSFORMER = ("model.diffusion_model.", "", "transformer.")

#: Prefixes of text encoders that keep transformers' names, by the pipeline's component.
_TRANSFORMERS_ENCODERS: Mapping[str, tuple[str, ...]] = {
    "text_encoder": (
        "cond_stage_model.transformer.",
        "conditioner.embedders.0.transformer.",
        "text_encoders.clip_l.transformer.",
    ),
    "text_encoder_2": (
        "text_encoders.clip_g.transformer.",
        "text_encoders.t5xxl.transformer.",
    ),
    "text_encoder_3": ("text_encoders.t5xxl.transformer.",),
}

#: Prefixes of text encoders in OpenCLIP's layout.
_OPEN_CLIP_ENCODERS: Mapping[str, str] = {
    "text_encoder": "cond_stage_model.model.",
    "text_encoder_2": "conditioner.embedders.1.model.",
}

#: Names of transformers' CLIP -> of OpenCLIP.
_OPEN_CLIP = {
    "text_model.encoder.layers.": "transformer.resblocks.",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
    "text_model.final_layer_norm": "ln_final",
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
}


def write_checkpoint(
    source: Path,
    target: Path,
    changes: Mapping[str, Change],
    modules: Mapping[str, nn.Module],
    beneath: Mapping[str, Change],
) -> None:
    """Copies a checkpoint with the edited weights in it.

    Args:
        source: The safetensors file of the unedited model, or of the one with the edits beneath.
        target: The new file; written under a temporary name first.
        changes: Parameters before and after the edit, by component and name.
        modules: The pipeline's components.
        beneath: Parameters before and after the edits beneath it; all are among ``changes``.

    Raises:
        ErasureError: If the file is no checkpoint of this model or cannot be written.
    """
    require_safetensors("checkpoint", source)
    header, start = stored_tensors(source)
    places = _places(changes, header, modules, source)
    with safe_open(source, framework="pt") as tensors, replacing(target) as temporary:
        shutil.copyfile(source, temporary)
        with temporary.open("r+b") as file:
            for key, content in _edited(changes, beneath, places, tensors, source).items():
                file.seek(start + header[key]["data_offsets"][0])
                file.write(content.contiguous().view(torch.uint8).numpy().tobytes())


def _edited(
    changes: Mapping[str, Change],
    beneath: Mapping[str, Change],
    places: Mapping[str, OriginalRows],
    tensors: Any,
    source: Path,
) -> dict[str, Tensor]:
    """New values of the file's tensors.

    Raises:
        ErasureError: If the file's own values are not those before the edit, nor those before the
            edits beneath it.
    """
    edited: dict[str, Tensor] = {}
    for name, place in places.items():
        value = edited.get(place.name)
        value = tensors.get_tensor(place.name).clone() if value is None else value
        if not any(_holds(value, place, each[name]) for each in (changes, beneath) if name in each):
            before = changes[name].before.dtype
            own, stored = (str(dtype).removeprefix("torch.") for dtype in (before, value.dtype))
            raise ErasureError(
                f"The checkpoint {source} needs the weights of the edit's base model, which the"
                f" pipeline has in {own}; found others in {place.name}, in {stored}. Give the file"
                " of that base model, and load the pipeline in the file's precision or a finer one."
            )
        place.write(_like(changes[name].after, value), value)
        edited[place.name] = value
    return edited


def _holds(tensor: Tensor, place: OriginalRows, change: Change) -> bool:
    """Whether a file's tensor has a parameter as it was before a change."""
    expected = tensor.clone()
    place.write(_like(change.before, tensor), expected)
    return torch.equal(expected, tensor)


def _like(value: Tensor, tensor: Tensor) -> Tensor:
    """A value in a stored tensor's precision, a 1x1 convolution where it is stored as one."""
    rows = value.to(tensor.dtype)
    if rows.dim() == 2 and tensor.dim() == 4:
        rows = rows[:, :, None, None]
    return rows


def _places(
    names: Iterable[str],
    header: Mapping[str, Any],
    modules: Mapping[str, nn.Module],
    source: Path,
) -> dict[str, OriginalRows]:
    """Where the file holds each parameter.

    Raises:
        ErasureError: If it does not hold one.
    """
    places = {}
    original = _unet_names(header, modules["unet"]) if "unet" in modules else {}
    shapes = {component: parameter_shapes(module) for component, module in modules.items()}
    for name in names:
        component, _, parameter = name.partition(".")
        kind = type(modules[component]).__name__
        place = None
        if kind in TRANSFORMER_LAYERS:
            place = _transformer_place(kind, parameter, header, shapes[component])
        elif component != "unet":
            place = _encoder_place(component, parameter, header)
        elif parameter in original:
            place = _whole(original[parameter], header)
        if place is None:
            raise ErasureError(
                f"The checkpoint {source} needs a tensor for {name}; found none. It holds another"
                " family, or lacks this component: export it as `component`."
            )
        places[name] = place
    return places


def _transformer_place(
    kind: str, parameter: str, header: Mapping[str, Any], shapes: Mapping[str, torch.Size]
) -> OriginalRows | None:
    rows = original_rows(kind, parameter, shapes)
    names = [] if rows is None else [f"{prefix}{rows.name}" for prefix in _TRANSFORMER]
    key = next((name for name in names if name in header), None)
    if rows is None or key is None:
        return None
    return replace(rows, name=key)


def _unet_names(header: Mapping[str, Any], module: nn.Module) -> dict[str, str]:
    """Names in the file by diffusers' names, as diffusers' own converter pairs them."""
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    empty = {
        name: torch.empty(entry["shape"], device="meta")
        for name, entry in header.items()
        if name.startswith("model.diffusion_model.")
    }
    names = {id(value): name for name, value in empty.items()}
    converted = convert_ldm_unet_checkpoint(dict(empty), cast(Any, module).config)
    return {name: names[id(value)] for name, value in converted.items() if id(value) in names}


def _encoder_place(
    component: str, parameter: str, header: Mapping[str, Any]
) -> OriginalRows | None:
    for prefix in _TRANSFORMERS_ENCODERS.get(component, ()):
        for name in (f"{prefix}{parameter}", f"{prefix}text_model.{parameter}"):
            if name in header:
                return _whole(name, header)
    prefix = _OPEN_CLIP_ENCODERS.get(component, "-")
    name = parameter if parameter.startswith("text_") else f"text_model.{parameter}"
    layer, _, leaf = name.rpartition(".")
    if layer.endswith(("q_proj", "k_proj", "v_proj")):
        fused = layer.rpartition(".self_attn.")[0].replace(*next(iter(_OPEN_CLIP.items())))
        key = f"{prefix}{fused}.attn.in_proj_{leaf}"
        if key in header:
            rows = header[key]["shape"][0]
            return OriginalRows(key, "qkv".index(layer[-6]) * rows // 3, rows)
        return None
    if name == "text_projection.weight" and f"{prefix}text_projection" in header:
        key = f"{prefix}text_projection"
        return OriginalRows(key, 0, header[key]["shape"][0], transposed=True)
    for own, other in _OPEN_CLIP.items():
        name = name.replace(own, other)
    return _whole(f"{prefix}{name}", header) if f"{prefix}{name}" in header else None


def _whole(name: str, header: Mapping[str, Any]) -> OriginalRows:
    return OriginalRows(name, 0, header[name]["shape"][0])
