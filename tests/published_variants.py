"""Tiny random pipelines with the configs of published models that no recipe names."""

from collections.abc import Callable
from typing import NamedTuple

import diffusers
from diffusers import DiffusionPipeline

from erasure_lightning.backbones.tiny import TinyBackbone, TinyFlux, TinyXL
from erasure_lightning.backbones.tiny_parts import random_clip, seeded, tiny_unet

#: What the published schedulers of Stable Diffusion 2.1 and of SDXL-Turbo have in common.
_NOISING = {
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
}


def stable_diffusion_2_1():
    """Velocity, 23 layers of an OpenCLIP text encoder, and padding by another token."""
    pipeline = TinyBackbone(prediction="velocity").to_pipeline()
    pipeline.scheduler = diffusers.DDIMScheduler.from_config(
        _NOISING | {"prediction_type": "v_prediction"}
    )
    pipeline.tokenizer.pad_token = "!"
    numbers = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}
    sizes = {"width": 32, "layers": 23, "heads": 4, "projection_dim": 16}
    with seeded(0):
        encoder = random_clip(
            "CLIPTextModel", pipeline.tokenizer, hidden_act="gelu", **sizes, **numbers
        )
        unet = tiny_unet(cross_attention_dim=32, use_linear_projection=True, upcast_attention=True)
    pipeline.text_encoder = encoder.eval()
    pipeline.unet = unet.eval()
    return pipeline


def sdxl_turbo():
    """Ancestral Euler steps from the last time on, drawn without guidance in one to four."""
    pipeline = TinyXL().to_pipeline()
    spacing = {"timestep_spacing": "trailing", "interpolation_type": "linear"}
    pipeline.scheduler = diffusers.EulerAncestralDiscreteScheduler.from_config(
        _NOISING | spacing | {"prediction_type": "epsilon", "sample_max_value": 1.0}
    )
    return pipeline


def flux_schnell():
    """No guidance as an input, and times that no image size shifts."""
    pipeline = TinyFlux(guidance_embeds=False).to_pipeline()
    shifts = {"base_shift": 0.5, "max_shift": 1.15, "shift": 1.0, "use_dynamic_shifting": False}
    lengths = {"base_image_seq_len": 256, "max_image_seq_len": 4096}
    pipeline.scheduler = diffusers.FlowMatchEulerDiscreteScheduler.from_config(
        {"num_train_timesteps": 1000} | shifts | lengths
    )
    return pipeline


class Variant(NamedTuple):
    """A published model, and a tiny pipeline with its configs."""

    hub_id: str
    build: Callable[[], DiffusionPipeline]


#: By the folder of the recipes that serve them.
VARIANTS = {
    "sd15": Variant("stabilityai/stable-diffusion-2-1", stable_diffusion_2_1),
    "sdxl": Variant("stabilityai/sdxl-turbo", sdxl_turbo),
    "flux": Variant("black-forest-labs/FLUX.1-schnell", flux_schnell),
}
