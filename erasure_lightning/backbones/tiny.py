"""A Stable Diffusion of random weights, built in a second: for tests, notebooks and plugin authors."""

from typing import Any, Literal, cast

import torch

from erasure_lightning.backbones.stable_diffusion import StableDiffusion

#: Words the tiny tokenizer knows whole; it spells everything else letter by letter.
WORDS = (
    *("a", "an", "the", "of", "photo", "picture", "image", "drawing", "emoji", "small", "close", "up", "style", "in"),
    *("cat", "dog", "star", "heart", "tree", "car", "boat", "bird", "fish", "house"),
)


class TinyBackbone(StableDiffusion):
    """Stable Diffusion with 0.2 M random parameters, 8x8 latents and a vocabulary of its own; needs no files.

    Args:
        seed: Of the weights.
        prediction: What its UNet predicts.
    """

    def __init__(self, *, seed: int = 0, prediction: Literal["epsilon", "velocity"] = "epsilon") -> None:
        from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel

        tokenizer = _tokenizer()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            unet = UNet2DConditionModel(
                sample_size=8, in_channels=4, out_channels=4, block_out_channels=(16, 32), layers_per_block=1,
                norm_num_groups=8, cross_attention_dim=32, attention_head_dim=8,
                down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
                up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            )  # fmt: skip
            vae = AutoencoderKL(
                block_out_channels=(8, 8), latent_channels=4, norm_num_groups=4, sample_size=16,
                down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
            )  # fmt: skip
            text_encoder = _text_encoder(tokenizer)
        scheduler = DDIMScheduler(
            beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False,
            set_alpha_to_one=False, steps_offset=1,
            prediction_type={"epsilon": "epsilon", "velocity": "v_prediction"}[prediction],
        )  # fmt: skip
        super().__init__(
            name="TinyBackbone", unet=unet, vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, scheduler=scheduler
        )
        self.requires_grad_(False).eval()


def _tokenizer() -> Any:
    """CLIP's tokenizer over letters and `WORDS`; 16 positions, so that nothing can assume 77."""
    from transformers import CLIPTokenizer

    letters = [chr(c) for c in range(33, 127)]
    pieces = letters + [f"{c}</w>" for c in letters]
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        parts = [*word[:-1], f"{word[-1]}</w>"]
        while len(parts) > 1:
            merges.append((parts[0], parts[1]))
            parts[:2] = ["".join(parts[:2])]
            pieces.append(parts[0])
    pieces = list(dict.fromkeys([*pieces, "<|startoftext|>", "<|endoftext|>"]))
    vocabulary = {piece: place for place, piece in enumerate(pieces)}
    return CLIPTokenizer(vocab=vocabulary, merges=list(dict.fromkeys(merges)), model_max_length=16)


def _text_encoder(tokenizer: Any) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=16, projection_dim=32, bos_token_id=cast(int, tokenizer.bos_token_id),
        eos_token_id=cast(int, tokenizer.eos_token_id), pad_token_id=cast(int, tokenizer.eos_token_id),
    )  # fmt: skip
    return CLIPTextModel(config).eval()
