"""Published models by their Hub ids: their exact shapes without their weights, for plans."""

from collections.abc import Callable
from typing import Any

import torch
from torch._subclasses.fake_tensor import unset_fake_temporarily

from erasure_lightning.backbones.base import Backbone
from erasure_lightning.backbones.clip_tower import ClipTower
from erasure_lightning.backbones.flux import Flux
from erasure_lightning.backbones.stable_diffusion import StableDiffusion
from erasure_lightning.backbones.stable_diffusion_3 import StableDiffusion3
from erasure_lightning.backbones.stable_diffusion_xl import StableDiffusionXL
from erasure_lightning.backbones.t5_tower import T5Tower
from erasure_lightning.backbones.tiny_parts import (
    random_clip,
    random_t5,
    random_vae,
    tiny_clip_tokenizer,
    tiny_t5_tokenizer,
)

#: Tokens of the published vocabularies.
_CLIP_WORDS = 49_408
_T5_WORDS = 32_128


def full_size_model(hub_id: str) -> Backbone | None:
    """A model of the shapes of a published one, with untrained weights.

    Its tokenizers are those of the tiny models, with the published lengths.

    Args:
        hub_id: ``owner/model``; of several resolutions the one that is used most.

    Returns:
        The model on the meta device; None if the id is not in `FULL_SIZE`.
    """
    build = FULL_SIZE.get(hub_id)
    if build is None:
        return None
    with unset_fake_temporarily():  # the schedules need values
        return build(hub_id).requires_grad_(False).eval()


def _clip(width: int, layers: int, **settings: Any) -> ClipTower:
    """A CLIP of OpenAI or OpenCLIP; ``settings`` are those of the tower."""
    tokenizer = tiny_clip_tokenizer(77)
    projected = settings.get("pooled") == "projected"
    kind = "CLIPTextModelWithProjection" if projected else "CLIPTextModel"
    sizes = {"layers": layers, "heads": width // 64, "vocab_size": _CLIP_WORDS}
    with torch.device("meta"):
        model = random_clip(kind, tokenizer, width=width, **sizes)
    return ClipTower(model, tokenizer, **settings)


def _t5_xxl(length: int) -> T5Tower:
    sizes = {"d_kv": 64, "d_ff": 10_240, "vocab_size": _T5_WORDS}
    with torch.device("meta"):
        model = random_t5(width=4096, layers=24, heads=64, **sizes)
    return T5Tower(model, tiny_t5_tokenizer(512), length=length)


def _vae(channels: int, **settings: Any) -> Any:
    widths = (128, 256, 512, 512)
    with torch.device("meta"):
        return random_vae(widths, layers_per_block=2, latent_channels=channels, **settings)


def _flow_vae(scaling_factor: float, shift_factor: float) -> Any:
    """The autoencoder of 16 channels that SD 3 and FLUX.1 have, each with its own latents."""
    return _vae(
        16,
        scaling_factor=scaling_factor,
        shift_factor=shift_factor,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def _ddim(**settings: Any) -> Any:
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        steps_offset=1,
        clip_sample=False,
        set_alpha_to_one=False,
        **settings,
    )


def _unet(**settings: Any) -> Any:
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        return UNet2DConditionModel(**settings)


def _sd15(name: str) -> Backbone:
    return StableDiffusion(
        name=name,
        denoiser=_unet(sample_size=64, cross_attention_dim=768),
        vae=_vae(4),
        towers=[_clip(768, 12)],
        scheduler=_ddim(),
    )


def _sd21(name: str) -> Backbone:
    unet = _unet(
        sample_size=96,
        cross_attention_dim=1024,
        attention_head_dim=(5, 10, 20, 20),
        use_linear_projection=True,
    )
    return StableDiffusion(
        name=name,
        denoiser=unet,
        vae=_vae(4),
        towers=[_clip(1024, 23)],
        scheduler=_ddim(prediction_type="v_prediction"),
    )


def _sdxl(name: str) -> Backbone:
    unet = _unet(
        sample_size=64 if name.endswith("turbo") else 128,
        cross_attention_dim=768 + 1280,
        block_out_channels=(320, 640, 1280),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(5, 10, 20),
        transformer_layers_per_block=(1, 2, 10),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=1280 + 6 * 256,
    )
    return StableDiffusionXL(
        name=name,
        denoiser=unet,
        vae=_vae(4),
        towers=[_clip(768, 12, layer=-2), _clip(1280, 32, layer=-2, pooled="projected")],
        scheduler=_ddim(),
    )


def _sd3(name: str) -> Backbone:
    """The three published sizes; 3.5 medium has a second image attention in half of its blocks."""
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel

    blocks = 38 if name.endswith("large") else 24
    settings: dict[str, Any] = {"qk_norm": "rms_norm"} if "3.5" in name else {}
    if name.endswith("3.5-medium"):
        settings |= {"dual_attention_layers": tuple(range(13)), "pos_embed_max_size": 384}
    else:
        settings |= {"pos_embed_max_size": 192}
    with torch.device("meta"):
        transformer = SD3Transformer2DModel(
            sample_size=128,
            num_layers=blocks,
            num_attention_heads=blocks,
            attention_head_dim=64,
            joint_attention_dim=4096,
            caption_projection_dim=64 * blocks,
            pooled_projection_dim=768 + 1280,
            **settings,
        )
    towers = [
        _clip(768, 12, layer=-2, pooled="projected"),
        _clip(1280, 32, layer=-2, pooled="projected"),
        _t5_xxl(256),
    ]
    return StableDiffusion3(
        name=name,
        denoiser=transformer,
        vae=_flow_vae(scaling_factor=1.5305, shift_factor=0.0609),
        towers=towers,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        size=1024,
    )


def _flux(name: str) -> Backbone:
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel

    is_dev = name.endswith("dev")
    with torch.device("meta"):
        transformer = FluxTransformer2DModel(guidance_embeds=is_dev)
    return Flux(
        name=name,
        denoiser=transformer,
        vae=_flow_vae(scaling_factor=0.3611, shift_factor=0.1159),
        towers=[_clip(768, 12, pooled="end"), _t5_xxl(512 if is_dev else 256)],
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=is_dev),
        size=1024,
    )


#: Builders of the models whose shapes are known, by Hub id.
FULL_SIZE: dict[str, Callable[[str], Backbone]] = {
    "runwayml/stable-diffusion-v1-5": _sd15,
    "stable-diffusion-v1-5/stable-diffusion-v1-5": _sd15,
    "CompVis/stable-diffusion-v1-4": _sd15,
    "stabilityai/stable-diffusion-2-1": _sd21,
    "stabilityai/stable-diffusion-xl-base-1.0": _sdxl,
    "stabilityai/sdxl-turbo": _sdxl,
    "stabilityai/stable-diffusion-3-medium-diffusers": _sd3,
    "stabilityai/stable-diffusion-3.5-medium": _sd3,
    "stabilityai/stable-diffusion-3.5-large": _sd3,
    "black-forest-labs/FLUX.1-dev": _flux,
    "black-forest-labs/FLUX.1-schnell": _flux,
}
