"""The supported pipeline classes of diffusers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Family:
    """A pipeline class: its components, and the `Backbone` made of them.

    Args:
        title: Name of the family in messages.
        backbone: ``module:class`` of its `Backbone`, which has ``from_pipeline``.
        models: Component with weights -> the ``(library, class)`` of it in ``model_index.json``.
        tokenizers: Tokenizer -> its text encoder.
        options: Further arguments of the pipeline's constructor.
        settings: Names of constructor arguments that ``model_index.json`` holds.
    """

    title: str
    backbone: str
    models: Mapping[str, tuple[str, str]]
    tokenizers: Mapping[str, str]
    options: Mapping[str, Any] = field(default_factory=dict)
    settings: Sequence[str] = ()


_PIXART: dict[str, Any] = {
    "models": {
        "transformer": ("diffusers", "PixArtTransformer2DModel"),
        "vae": ("diffusers", "AutoencoderKL"),
        "text_encoder": ("transformers", "T5EncoderModel"),
    },
    "tokenizers": {"tokenizer": "text_encoder"},
}

#: By the ``_class_name`` of ``model_index.json``.
FAMILIES: dict[str, Family] = {
    "StableDiffusionPipeline": Family(
        "Stable Diffusion 1.x and 2.x",
        "erasure_lightning.backbones.stable_diffusion:StableDiffusion",
        models={
            "unet": ("diffusers", "UNet2DConditionModel"),
            "vae": ("diffusers", "AutoencoderKL"),
            "text_encoder": ("transformers", "CLIPTextModel"),
        },
        tokenizers={"tokenizer": "text_encoder"},
        options={
            "safety_checker": None,
            "feature_extractor": None,
            "requires_safety_checker": False,
        },
    ),
    "StableDiffusionXLPipeline": Family(
        "Stable Diffusion XL",
        "erasure_lightning.backbones.stable_diffusion_xl:StableDiffusionXL",
        models={
            "unet": ("diffusers", "UNet2DConditionModel"),
            "vae": ("diffusers", "AutoencoderKL"),
            "text_encoder": ("transformers", "CLIPTextModel"),
            "text_encoder_2": ("transformers", "CLIPTextModelWithProjection"),
        },
        tokenizers={"tokenizer": "text_encoder", "tokenizer_2": "text_encoder_2"},
        options={"add_watermarker": False},
        settings=("force_zeros_for_empty_prompt",),
    ),
    "FluxPipeline": Family(
        "FLUX.1",
        "erasure_lightning.backbones.flux:Flux",
        models={
            "transformer": ("diffusers", "FluxTransformer2DModel"),
            "vae": ("diffusers", "AutoencoderKL"),
            "text_encoder": ("transformers", "CLIPTextModel"),
            "text_encoder_2": ("transformers", "T5EncoderModel"),
        },
        tokenizers={"tokenizer": "text_encoder", "tokenizer_2": "text_encoder_2"},
    ),
    "PixArtSigmaPipeline": Family(
        "PixArt-Sigma", "erasure_lightning.backbones.pixart:PixArt", **_PIXART
    ),
    "PixArtAlphaPipeline": Family(
        "PixArt-Alpha", "erasure_lightning.backbones.pixart:PixArtAlpha", **_PIXART
    ),
}
