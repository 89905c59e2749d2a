"""Tiny models with random weights, one of each family, for tests, notebooks and plugin authors."""

from erasure_lightning.backbones.base import Backbone
from erasure_lightning.backbones.clip_tower import ClipTower
from erasure_lightning.backbones.flux import Flux
from erasure_lightning.backbones.pixart import PixArt
from erasure_lightning.backbones.stable_diffusion import StableDiffusion
from erasure_lightning.backbones.stable_diffusion_3 import StableDiffusion3
from erasure_lightning.backbones.stable_diffusion_xl import StableDiffusionXL
from erasure_lightning.backbones.t5_tower import T5Tower
from erasure_lightning.backbones.tiny_parts import (
    Prediction,
    built_once,
    seeded,
    tiny_clip_tokenizer,
    tiny_flux_transformer,
    tiny_pixart_transformer,
    tiny_scheduler,
    tiny_sd3_transformer,
    tiny_t5_encoder,
    tiny_t5_tokenizer,
    tiny_text_encoder,
    tiny_unet,
    tiny_vae,
)
from erasure_lightning.backbones.towers import TextTower


class TinyBackbone(StableDiffusion):
    """Stable Diffusion with 0.2 M random parameters, 8x8 latents and a vocabulary of its own.

    It is built in a second and needs no files.

    Args:
        seed: Seed of the weights.
        prediction: Prediction type of the UNet.
    """

    @built_once
    def __init__(self, *, seed: int = 0, prediction: Prediction = "epsilon") -> None:
        tokenizer = tiny_clip_tokenizer()
        with seeded(seed):
            unet = tiny_unet(cross_attention_dim=32)
            vae = tiny_vae()
            tower = ClipTower(tiny_text_encoder(tokenizer, "CLIPTextModel"), tokenizer)
        super().__init__(
            name="TinyBackbone",
            denoiser=unet,
            vae=vae,
            towers=[tower],
            scheduler=tiny_scheduler(prediction),
        )
        self.requires_grad_(False).eval()


class TinyXL(StableDiffusionXL):
    """Stable Diffusion XL with 0.3 M random parameters, 8x8 latents and a vocabulary of its own.

    Args:
        seed: Seed of the weights.
        prediction: Prediction type of the UNet.
        zero_unconditional: Whether unconditional predictions read zeros.
    """

    @built_once
    def __init__(
        self, *, seed: int = 0, prediction: Prediction = "epsilon", zero_unconditional: bool = True
    ) -> None:
        tokenizers = tiny_clip_tokenizer(), tiny_clip_tokenizer()
        with seeded(seed):
            unet = tiny_unet(
                cross_attention_dim=32 + 24,
                addition_embed_type="text_time",
                addition_time_embed_dim=4,
                projection_class_embeddings_input_dim=20 + 6 * 4,
            )
            vae = tiny_vae()
            first = tiny_text_encoder(tokenizers[0], "CLIPTextModel", layers=3)
            second = tiny_text_encoder(
                tokenizers[1], "CLIPTextModelWithProjection", layers=3, width=24, projection=20
            )
        super().__init__(
            name="TinyXL",
            denoiser=unet,
            vae=vae,
            towers=[
                ClipTower(first, tokenizers[0], layer=-2),
                ClipTower(second, tokenizers[1], layer=-2, pooled="projected"),
            ],
            scheduler=tiny_scheduler(prediction, "EulerDiscreteScheduler"),
            zero_unconditional=zero_unconditional,
        )
        self.requires_grad_(False).eval()


class TinyFlux(Flux):
    """FLUX.1 with 0.1 M random parameters, 8x8 latents and vocabularies of its own.

    Args:
        seed: Seed of the weights.
        guidance_embeds: Whether the transformer reads the guidance scale, as FLUX.1-dev does.
    """

    @built_once
    def __init__(self, *, seed: int = 0, guidance_embeds: bool = True) -> None:
        from diffusers import FlowMatchEulerDiscreteScheduler

        tokenizers = tiny_clip_tokenizer(), tiny_t5_tokenizer()
        with seeded(seed):
            transformer = tiny_flux_transformer(guidance_embeds)
            vae = tiny_vae(shift_factor=0.1, scaling_factor=0.5)
            clip = tiny_text_encoder(tokenizers[0], "CLIPTextModel")
            t5 = tiny_t5_encoder(tokenizers[1])
        super().__init__(
            name="TinyFlux",
            denoiser=transformer,
            vae=vae,
            towers=[ClipTower(clip, tokenizers[0], pooled="end"), T5Tower(t5, tokenizers[1])],
            scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
            size=16,
        )
        self.requires_grad_(False).eval()


class TinyPixArt(PixArt):
    """PixArt-Sigma with 0.1 M random parameters, 8x8 latents and a vocabulary of its own.

    Args:
        seed: Seed of the weights.
    """

    @built_once
    def __init__(self, *, seed: int = 0) -> None:
        from diffusers import DPMSolverMultistepScheduler

        tokenizer = tiny_t5_tokenizer()
        with seeded(seed):
            transformer = tiny_pixart_transformer()
            vae = tiny_vae()
            t5 = tiny_t5_encoder(tokenizer)
        super().__init__(
            name="TinyPixArt",
            denoiser=transformer,
            vae=vae,
            towers=[T5Tower(t5, tokenizer, masked=True, lowercase=True)],
            scheduler=DPMSolverMultistepScheduler(),
        )
        self.requires_grad_(False).eval()


class TinySD3(StableDiffusion3):
    """Stable Diffusion 3 with 0.1 M random parameters, 8x8 latents and vocabularies of its own.

    Args:
        seed: Seed of the weights.
        t5: Whether it has a T5 tower.
        dual_attention: Whether the first block has a second attention, as in SD 3.5 medium.
    """

    @built_once
    def __init__(self, *, seed: int = 0, t5: bool = True, dual_attention: bool = False) -> None:
        from diffusers import FlowMatchEulerDiscreteScheduler

        clips = tiny_clip_tokenizer(), tiny_clip_tokenizer()
        tokenizer = tiny_t5_tokenizer()
        kind = "CLIPTextModelWithProjection"
        with seeded(seed):
            transformer = tiny_sd3_transformer(dual_attention)
            vae = tiny_vae(shift_factor=0.1, scaling_factor=0.5)
            towers: list[TextTower] = [
                ClipTower(
                    tiny_text_encoder(clip, kind, layers=3, width=8, projection=projection),
                    clip,
                    layer=-2,
                    pooled="projected",
                )
                for clip, projection in zip(clips, (12, 20), strict=True)
            ]
            if t5:
                towers.append(T5Tower(tiny_t5_encoder(tokenizer), tokenizer))
        super().__init__(
            name="TinySD3",
            denoiser=transformer,
            vae=vae,
            towers=towers,
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
            size=16,
        )
        self.requires_grad_(False).eval()


#: A tiny model of every family.
TINY_BACKBONES: tuple[type[Backbone], ...] = (
    TinyBackbone,
    TinyXL,
    TinySD3,
    TinyFlux,
    TinyPixArt,
)
