"""Checkpoints in one file, in the layouts of the models' authors, through diffusers' readers.

Such a file holds weights alone: configs and tokenizers are those of a diffusers pipeline, which the
user names, or which lies beside the file or in the Hub's cache. What the file lacks (FLUX.1's text
encoders) is read from that pipeline too.
"""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from erasure_lightning.errors import ErasureError
from erasure_lightning.files.safetensors_file import meta_tensors, tensor_shapes

#: Prefixes of a component's tensors: Stable Diffusion 1.x and 2.x, XL, 3.x and FLUX.1.
_PREFIXES: dict[str, tuple[str, ...]] = {
    "vae": ("first_stage_model.", "vae."),
    "text_encoder": ("cond_stage_model.", "conditioner.embedders.0.", "text_encoders.clip_l."),
    "text_encoder_2": ("conditioner.embedders.1.", "text_encoders.clip_g."),
}
_T5 = ("text_encoders.t5xxl.",)
_DENOISER = "model.diffusion_model."

#: First segments of a transformer's tensors where a file holds the transformer alone.
_BARE = (
    "joint_blocks", "double_blocks", "single_blocks", "pos_embed", "x_embedder", "t_embedder",
    "y_embedder", "context_embedder", "final_layer", "img_in", "txt_in", "time_in", "vector_in",
    "guidance_in",
)  # fmt: skip

#: Those of its blocks, which no other layout has.
_BLOCKS = ("joint_blocks.", "double_blocks.")

#: Names of empty tensors -> the scheduler's setting that they stand for.
_MARKS = {"v_pred": ("prediction_type", "v_prediction"), "ztsnr": ("rescale_betas_zero_snr", True)}

#: Prefixes of text encoders in OpenCLIP's layout.
_OPEN_CLIP = ("cond_stage_model.model.", "conditioner.embedders.1.model.")

#: Kinds of files by diffusers' names that an erasure can use -> what they are.
_KINDS = {
    "v1": "Stable Diffusion 1.x",
    "v2": "Stable Diffusion 2.x",
    "xl_base": "Stable Diffusion XL",
    "sd3": "Stable Diffusion 3",
    "sd35_medium": "Stable Diffusion 3.5 medium",
    "sd35_large": "Stable Diffusion 3.5 large",
    "flux-dev": "FLUX.1-dev",
    "flux-schnell": "FLUX.1-schnell",
}


def original_repository(file: Path) -> tuple[str, str]:
    """What a checkpoint is, and the Hub repository of its configs and tokenizers.

    Raises:
        ErasureError: If it is no text-to-image model in a known layout.
    """
    from diffusers.loaders.single_file_utils import (
        DIFFUSERS_DEFAULT_PIPELINE_PATHS,
        infer_diffusers_model_type,
    )

    shapes = tensor_shapes(file)
    if not any(name.startswith((_DENOISER, *_BLOCKS)) for name in shapes):
        first = next(iter(sorted(shapes)), "no tensors")
        raise ErasureError(
            f"The backbone {str(file)!r} needs a denoiser in its authors' layout"
            f" ({_DENOISER}..., joint_blocks..., double_blocks...); found {first}. A single"
            " component belongs in a folder as diffusers writes it, a LoRA in loras (command line:"
            " --model.loras)."
        )
    kind = infer_diffusers_model_type(meta_tensors(shapes))
    if kind not in _KINDS:
        raise ErasureError(
            f"The backbone {str(file)!r} needs to be one of {', '.join(_KINDS.values())}; found"
            f" {kind}."
        )
    return _KINDS[kind], DIFFUSERS_DEFAULT_PIPELINE_PATHS[kind]["pretrained_model_name_or_path"]


def component_tensors(names: Collection[str], component: str, kind: str) -> list[str]:
    """Names of a component's tensors in a checkpoint.

    Args:
        names: All names in it.
        component: The pipeline's component (``unet``, ``text_encoder_2``).
        kind: Class of the component.
    """
    prefixes = _T5 if kind == "T5EncoderModel" else _PREFIXES.get(component, (_DENOISER,))
    own = [name for name in names if name.startswith(prefixes)]
    if own or component not in ("unet", "transformer"):
        return own
    return [name for name in names if name.partition(".")[0] in _BARE]


def require_prediction(name: str, names: Collection[str], scheduler: Any) -> None:
    """Raises unless a scheduler has the settings that a checkpoint marks by empty tensors.

    The marks ``v_pred`` and ``ztsnr`` are those that ComfyUI reads.

    Args:
        name: The user's name for the model.
        names: Names of all tensors in the checkpoint.
        scheduler: The pipeline's scheduler.

    Raises:
        ErasureError: If it has others.
    """
    for mark, (setting, value) in _MARKS.items():
        if mark in names and scheduler.config.get(setting) != value:
            raise ErasureError(
                f"The scheduler of {name} needs {setting} {value}, since the checkpoint is marked"
                f" with {mark}; found {scheduler.config.get(setting)}. Set it in the folder's"
                " scheduler_config.json."
            )


def converted_tensors(
    title: str, model: Any, tensors: dict[str, Tensor]
) -> tuple[dict[str, Tensor], list[str]]:
    """A component's tensors by diffusers' names, and the names of those that have no place in it.

    Args:
        title: The component, for messages.
        model: It, on the meta device.
        tensors: By the checkpoint's names; they may be on the meta device too.

    Raises:
        ErasureError: If a tensor is missing without which the others cannot be converted.
    """
    try:
        tensors = dict(tensors)  # some converters take tensors out
        converted = _convert(model, tensors)
    except KeyError as error:
        raise ErasureError(
            f"The {title} needs the tensor {error.args[0]}; found none. The file is incomplete, or"
            " of another family: download it again, or name its configs with @."
        ) from error
    used = {id(tensor) for tensor in converted.values()}
    is_denoiser = hasattr(model, "attn_processors") and not hasattr(model, "decoder")
    unused = [name for name, tensor in tensors.items() if id(tensor) not in used]
    return converted, unused if is_denoiser else []


def _convert(model: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    from diffusers.loaders import single_file_utils as readers
    from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES

    kind = type(model).__name__
    if kind in SINGLE_FILE_LOADABLE_CLASSES:
        mapping = SINGLE_FILE_LOADABLE_CLASSES[kind]["checkpoint_mapping_fn"]
        converted = mapping(config=dict(model.config), checkpoint=tensors)
    elif kind == "T5EncoderModel":
        converted = readers.convert_sd3_t5_checkpoint_to_diffusers(tensors)
    elif prefix := next((p for p in _OPEN_CLIP if any(n.startswith(p) for n in tensors)), None):
        converted = readers.convert_open_clip_checkpoint(model, tensors, prefix=prefix)
    else:
        sd3 = next(iter(tensors)).partition("transformer.")[0] + "transformer."
        converted = readers.convert_ldm_clip_checkpoint(tensors, sd3)
        if sd3.startswith("text_encoders.clip_l.") and hasattr(model, "text_projection"):
            converted["text_projection.weight"] = torch.eye(model.config.hidden_size)
    return {name: tensor for name, tensor in converted.items() if tensor is not None}


def read_single_file(
    cls: Any,
    file: Path,
    names: Collection[str],
    folder: Path,
    settings: Mapping[str, Any],
    dtype: torch.dtype,
) -> Any:
    """A component out of a checkpoint, as diffusers' ``from_single_file`` reads it.

    Args:
        cls: Class of the component.
        file: The checkpoint.
        names: Its tensors in the checkpoint.
        folder: Folder of its config.
        settings: Settings that take the place of those in its config.
        dtype: Precision of the weights.
    """
    from diffusers.loaders import single_file_utils as readers

    with safe_open(file, framework="pt") as content:
        tensors = {name: content.get_tensor(name) for name in names}
    if hasattr(cls, "from_single_file"):
        return cls.from_single_file(
            tensors, config=str(folder), torch_dtype=dtype, local_files_only=True, **settings
        )
    read = readers.create_diffusers_clip_model_from_ldm
    if cls.__name__ == "T5EncoderModel":
        read = readers.create_diffusers_t5_model_from_checkpoint
    model = read(cls, tensors, config=str(folder), torch_dtype=dtype, local_files_only=True)
    return model.eval()
