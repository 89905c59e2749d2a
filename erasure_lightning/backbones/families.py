"""The supported pipeline classes of diffusers."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from erasure_lightning.backbones.base import Backbone


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
        optional: Text encoders that a pipeline may lack: ``[null, null]`` in ``model_index.json``.
    """

    title: str
    backbone: str
    models: Mapping[str, tuple[str, str]]
    tokenizers: Mapping[str, str]
    options: Mapping[str, Any] = field(default_factory=dict)
    settings: Sequence[str] = ()
    optional: Collection[str] = ()

    def load_class(self) -> type["Backbone"]:
        """The family's `Backbone` class, imported when it is first used."""
        backbone: type[Backbone] = resolve_name(self.backbone)
        return backbone

    def in_index(self, index: Mapping[str, Any]) -> "Family":
        """The family without the optional text encoders that a ``model_index.json`` lacks."""
        absent = {name for name in self.optional if index.get(name) == [None, None]}
        absent |= {name for name, tower in self.tokenizers.items() if tower in absent}
        return replace(
            self,
            models={name: value for name, value in self.models.items() if name not in absent},
            tokenizers={k: tower for k, tower in self.tokenizers.items() if k not in absent},
            options={**self.options, **dict.fromkeys(absent)},
        )


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
    "StableDiffusion3Pipeline": Family(
        "Stable Diffusion 3 and 3.5",
        "erasure_lightning.backbones.stable_diffusion_3:StableDiffusion3",
        models={
            "transformer": ("diffusers", "SD3Transformer2DModel"),
            "vae": ("diffusers", "AutoencoderKL"),
            "text_encoder": ("transformers", "CLIPTextModelWithProjection"),
            "text_encoder_2": ("transformers", "CLIPTextModelWithProjection"),
            "text_encoder_3": ("transformers", "T5EncoderModel"),
        },
        tokenizers={
            "tokenizer": "text_encoder",
            "tokenizer_2": "text_encoder_2",
            "tokenizer_3": "text_encoder_3",
        },
        optional={"text_encoder_3"},
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
