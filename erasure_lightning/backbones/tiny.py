"""Tiny models with random weights, one of each family, for tests, notebooks and plugin authors."""

from typing import Any, Literal, cast

import torch

from erasure_lightning.backbones.base import Backbone
from erasure_lightning.backbones.clip_tower import ClipTower
from erasure_lightning.backbones.flux import Flux
from erasure_lightning.backbones.pixart import PixArt
from erasure_lightning.backbones.stable_diffusion import StableDiffusion
from erasure_lightning.backbones.stable_diffusion_xl import StableDiffusionXL
from erasure_lightning.backbones.t5_tower import T5Tower

#: Prediction type of a tiny UNet.
Prediction = Literal["epsilon", "velocity"]

#: Words that are single tokens of the tiny tokenizer; all else is spelled letter by letter.
TINY_WORDS = (
    "a", "an", "the", "of", "photo", "picture", "image", "drawing", "emoji", "small", "close", "up",
    "style", "in", "cat", "dog", "star", "heart", "tree", "car", "boat", "bird", "fish", "house",
)  # fmt: skip


class TinyBackbone(StableDiffusion):
    """Stable Diffusion with 0.2 M random parameters, 8x8 latents and a vocabulary of its own.

    It is built in a second and needs no files.

    Args:
        seed: Seed of the weights.
        prediction: Prediction type of the UNet.
    """

    def __init__(self, *, seed: int = 0, prediction: Prediction = "epsilon") -> None:
        tokenizer = tiny_tokenizer()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            unet = _unet(cross_attention_dim=32)
            vae = _vae()
            tower = ClipTower(_text_encoder(tokenizer, "CLIPTextModel"), tokenizer)
        super().__init__(
            name="TinyBackbone",
            unet=unet,
            vae=vae,
            towers=[tower],
            scheduler=_scheduler(prediction),
        )
        self.requires_grad_(False).eval()


class TinyXL(StableDiffusionXL):
    """Stable Diffusion XL with 0.3 M random parameters, 8x8 latents and a vocabulary of its own.

    Args:
        seed: Seed of the weights.
        prediction: Prediction type of the UNet.
        zero_unconditional: Whether unconditional predictions read zeros.
    """

    def __init__(
        self, *, seed: int = 0, prediction: Prediction = "epsilon", zero_unconditional: bool = True
    ) -> None:
        tokenizers = tiny_tokenizer(), tiny_tokenizer()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            unet = _unet(
                cross_attention_dim=32 + 24,
                addition_embed_type="text_time",
                addition_time_embed_dim=4,
                projection_class_embeddings_input_dim=20 + 6 * 4,
            )
            vae = _vae()
            first = _text_encoder(tokenizers[0], "CLIPTextModel", layers=3)
            second = _text_encoder(
                tokenizers[1], "CLIPTextModelWithProjection", layers=3, width=24, projection=20
            )
        super().__init__(
            name="TinyXL",
            unet=unet,
            vae=vae,
            towers=[
                ClipTower(first, tokenizers[0], layer=-2),
                ClipTower(second, tokenizers[1], layer=-2, pooled="projected"),
            ],
            scheduler=_scheduler(prediction, "EulerDiscreteScheduler"),
            zero_unconditional=zero_unconditional,
        )
        self.requires_grad_(False).eval()


class TinyFlux(Flux):
    """FLUX.1 with 0.1 M random parameters, 8x8 latents and vocabularies of its own.

    Args:
        seed: Seed of the weights.
        guidance_embeds: Whether the transformer reads the guidance scale, as FLUX.1-dev does.
    """

    def __init__(self, *, seed: int = 0, guidance_embeds: bool = True) -> None:
        from diffusers import FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel

        tokenizers = tiny_tokenizer(), t5_tokenizer()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            transformer = FluxTransformer2DModel(
                in_channels=16,
                num_layers=1,
                num_single_layers=1,
                attention_head_dim=16,
                num_attention_heads=2,
                joint_attention_dim=24,
                pooled_projection_dim=32,
                guidance_embeds=guidance_embeds,
                axes_dims_rope=(4, 6, 6),
            )
            vae = _vae(shift_factor=0.1, scaling_factor=0.5)
            clip = _text_encoder(tokenizers[0], "CLIPTextModel")
            t5 = _t5_encoder(tokenizers[1])
        super().__init__(
            name="TinyFlux",
            transformer=transformer,
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

    def __init__(self, *, seed: int = 0) -> None:
        from diffusers import DPMSolverMultistepScheduler, PixArtTransformer2DModel

        tokenizer = t5_tokenizer()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            transformer = PixArtTransformer2DModel(
                num_attention_heads=2,
                attention_head_dim=16,
                num_layers=2,
                cross_attention_dim=32,
                caption_channels=24,
                sample_size=8,
            )
            vae = _vae()
            t5 = _t5_encoder(tokenizer)
        super().__init__(
            name="TinyPixArt",
            denoiser=transformer,
            vae=vae,
            towers=[T5Tower(t5, tokenizer, masked=True, lowercase=True)],
            scheduler=DPMSolverMultistepScheduler(),
        )
        self.requires_grad_(False).eval()


#: A tiny model of every family.
TINY_BACKBONES: tuple[type[Backbone], ...] = (TinyBackbone, TinyXL, TinyFlux, TinyPixArt)


def _unet(**settings: Any) -> Any:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=8,
        attention_head_dim=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        **settings,
    )


def _vae(**settings: Any) -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(8, 8),
        latent_channels=4,
        norm_num_groups=4,
        sample_size=16,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        **settings,
    )


def _scheduler(prediction: Prediction, kind: str = "DDIMScheduler") -> Any:
    import diffusers

    ddim: dict[str, Any] = {"clip_sample": False, "set_alpha_to_one": False}
    return getattr(diffusers, kind)(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        steps_offset=1,
        prediction_type={"epsilon": "epsilon", "velocity": "v_prediction"}[prediction],
        **(ddim if kind == "DDIMScheduler" else {}),
    )


def tiny_tokenizer(length: int = 16) -> Any:
    """CLIP's tokenizer over letters and `TINY_WORDS`; 16, so that no code assumes 77."""
    from transformers import CLIPTokenizer

    letters = [chr(c) for c in range(33, 127)]
    pieces = letters + [f"{c}</w>" for c in letters]
    merges: list[tuple[str, str]] = []
    for word in TINY_WORDS:
        parts = [*word[:-1], f"{word[-1]}</w>"]
        while len(parts) > 1:
            merges.append((parts[0], parts[1]))
            parts[:2] = ["".join(parts[:2])]
            pieces.append(parts[0])
    pieces = list(dict.fromkeys([*pieces, "<|startoftext|>", "<|endoftext|>"]))
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    return CLIPTokenizer(
        vocab=vocabulary, merges=list(dict.fromkeys(merges)), model_max_length=length
    )


def _text_encoder(
    tokenizer: Any, kind: str, *, layers: int = 2, width: int = 32, projection: int = 32
) -> Any:
    import transformers

    config = transformers.CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=16,
        projection_dim=projection,
        bos_token_id=cast(int, tokenizer.bos_token_id),
        eos_token_id=cast(int, tokenizer.eos_token_id),
        pad_token_id=cast(int, tokenizer.eos_token_id),
    )
    return getattr(transformers, kind)(config).eval()


def t5_tokenizer(length: int = 20) -> Any:
    """T5's tokenizer over letters and `TINY_WORDS`."""
    from transformers import T5Tokenizer

    letters = [chr(c) for c in range(33, 127)]
    words = [f"\u2581{word}" for word in TINY_WORDS]  # sentencepiece's mark of a word's beginning
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -3.0)]
    pieces += [(word, -1.0) for word in words] + [(letter, -4.0) for letter in letters]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=length)


def _t5_encoder(tokenizer: Any) -> Any:
    from transformers import T5Config, T5EncoderModel

    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=24,
        d_kv=8,
        num_heads=2,
        d_ff=32,
        num_layers=2,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
    )
    return T5EncoderModel(config).eval()
