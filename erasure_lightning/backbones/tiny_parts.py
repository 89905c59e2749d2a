"""Parts of the tiny models: tokenizers, text encoders, UNet, autoencoder, scheduler."""

from typing import Any, Literal, cast

#: Prediction type of a tiny UNet.
Prediction = Literal["epsilon", "velocity"]

#: Words that are single tokens of the tiny tokenizer; all else is spelled letter by letter.
TINY_WORDS = (
    "a", "an", "the", "of", "photo", "picture", "image", "drawing", "emoji", "small", "close", "up",
    "style", "in", "cat", "dog", "star", "heart", "tree", "car", "boat", "bird", "fish", "house",
)  # fmt: skip


def tiny_unet(**settings: Any) -> Any:
    """A UNet of two levels for 8x8 latents; ``settings`` are its own."""
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


def tiny_vae(**settings: Any) -> Any:
    """An autoencoder that halves the sides; ``settings`` are its own."""
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


def tiny_scheduler(prediction: Prediction, kind: str = "DDIMScheduler") -> Any:
    """A scheduler with Stable Diffusion's noise schedule."""
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


def tiny_clip_tokenizer(length: int = 16) -> Any:
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


def tiny_text_encoder(
    tokenizer: Any, kind: str, *, layers: int = 2, width: int = 32, projection: int = 32
) -> Any:
    """A CLIP text encoder of a class of transformers."""
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


def tiny_t5_tokenizer(length: int = 20) -> Any:
    """T5's tokenizer over letters and `TINY_WORDS`."""
    from transformers import T5Tokenizer

    letters = [chr(c) for c in range(33, 127)]
    words = [f"\u2581{word}" for word in TINY_WORDS]  # sentencepiece's mark of a word's beginning
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -3.0)]
    pieces += [(word, -1.0) for word in words] + [(letter, -4.0) for letter in letters]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=length)


def tiny_t5_encoder(tokenizer: Any) -> Any:
    """A T5 encoder of width 24."""
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
