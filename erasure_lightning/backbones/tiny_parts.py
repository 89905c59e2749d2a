"""Parts of models with random weights: tokenizers, text encoders, denoisers, autoencoders."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, Literal

import torch

from erasure_lightning.backbones.structural_copy import copier

#: Prediction type of a tiny UNet.
Prediction = Literal["epsilon", "velocity"]

#: Words that are single tokens of the tiny tokenizer; all else is spelled letter by letter.
TINY_WORDS = (
    "a", "an", "the", "of", "photo", "picture", "image", "drawing", "emoji", "small", "close", "up",
    "style", "in", "cat", "dog", "star", "heart", "tree", "car", "boat", "bird", "fish", "house",
)  # fmt: skip

#: Attention of tiny transformers.
_TWO_HEADS = {"num_attention_heads": 2, "attention_head_dim": 16}


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw random weights from a seed; the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def built_once(build: Callable[..., None]) -> Callable[..., None]:
    """Decorates a model's constructor: objects of equal arguments are copies of the first one."""
    copiers: dict[Any, Callable[[], dict[str, Any]]] = {}

    @wraps(build)
    def construct(self: Any, **arguments: Any) -> None:
        sample = torch.empty(0)  # a context may make it fake, on another device, of other precision
        key = (type(self), *arguments.items(), sample.dtype)
        if key in copiers and _is_plain(sample):
            vars(self).update(copiers[key]())
            for tower in self.towers:
                _restore_decoding(tower.tokenizer)
            return
        build(self, **arguments)
        if _is_plain(sample):
            copiers[key] = copier(vars(self))

    return construct


def _restore_decoding(tokenizer: Any) -> None:
    """Lets a copy of CLIP's tokenizer decode words without their end-of-word suffix again.

    transformers 5 replaces a method of the object for that, which neither pickle nor `deepcopy`
    copies; only its private method does so again.
    """
    from transformers import CLIPTokenizer

    if isinstance(tokenizer, CLIPTokenizer):
        tokenizer._wrap_decode_method_backend_tokenizer()


def _is_plain(tensor: torch.Tensor) -> bool:
    return type(tensor) is torch.Tensor and tensor.device.type == "cpu"


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


def tiny_sd3_transformer(dual_attention: bool) -> Any:
    """A transformer of Stable Diffusion 3 with two blocks.

    Args:
        dual_attention: Whether the first has a second attention, as in SD 3.5 medium.
    """
    from diffusers import SD3Transformer2DModel

    return SD3Transformer2DModel(
        **_TWO_HEADS,
        sample_size=8,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        joint_attention_dim=24,
        caption_projection_dim=32,
        pooled_projection_dim=12 + 20,
        pos_embed_max_size=16,
        dual_attention_layers=(0,) if dual_attention else (),
        qk_norm="rms_norm",
    )


def tiny_flux_transformer(guidance_embeds: bool) -> Any:
    """A transformer of FLUX.1 with a block of either kind.

    Args:
        guidance_embeds: Whether it reads the guidance scale, as FLUX.1-dev does.
    """
    from diffusers import FluxTransformer2DModel

    blocks = {"num_layers": 1, "num_single_layers": 1}
    states = {"joint_attention_dim": 24, "pooled_projection_dim": 32}
    return FluxTransformer2DModel(
        **_TWO_HEADS | blocks | states,
        in_channels=16,
        guidance_embeds=guidance_embeds,
        axes_dims_rope=(4, 6, 6),
    )


def tiny_pixart_transformer() -> Any:
    """A transformer of PixArt-Sigma with two blocks."""
    from diffusers import PixArtTransformer2DModel

    states = {"cross_attention_dim": 32, "caption_channels": 24}
    return PixArtTransformer2DModel(**_TWO_HEADS | states, num_layers=2, sample_size=8)


def random_vae(widths: tuple[int, ...], **settings: Any) -> Any:
    """An autoencoder that halves the sides between two ``widths``; ``settings`` are its own."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=widths,
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        **settings,
    )


def tiny_vae(**settings: Any) -> Any:
    """An autoencoder of 8x8 latents that halves the sides; ``settings`` are its own."""
    return random_vae((8, 8), latent_channels=4, norm_num_groups=4, sample_size=16, **settings)


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


def random_clip(
    kind: str, tokenizer: Any, *, width: int, layers: int, heads: int, **settings: Any
) -> Any:
    """A CLIP text encoder with random weights.

    Args:
        kind: Name of its class in transformers, such as ``CLIPTextModelWithProjection``.
        tokenizer: Its tokenizer, which determines vocabulary, length and special tokens.
        width: Dimension of the states.
        layers: Number of blocks.
        heads: Number of attention heads.
        settings: Further values of its config.
    """
    import transformers

    defaults = {
        "vocab_size": len(tokenizer),
        "intermediate_size": 4 * width,
        "projection_dim": width,
        "max_position_embeddings": tokenizer.model_max_length,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.eos_token_id,
    }
    config = transformers.CLIPTextConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        **(defaults | settings),
    )
    return getattr(transformers, kind)(config)


def tiny_text_encoder(
    tokenizer: Any, kind: str, *, layers: int = 2, width: int = 32, projection: int = 32
) -> Any:
    """A CLIP text encoder of four heads with random weights.

    Args:
        tokenizer: Its tokenizer.
        kind: Name of its class in transformers.
        layers: Number of blocks.
        width: Dimension of the states.
        projection: Dimension of the projected state.
    """
    sizes = {"intermediate_size": 64, "projection_dim": projection}
    return random_clip(kind, tokenizer, width=width, layers=layers, heads=4, **sizes).eval()


def tiny_t5_tokenizer(length: int = 20) -> Any:
    """T5's tokenizer over letters and `TINY_WORDS`."""
    from transformers import T5Tokenizer

    letters = [chr(c) for c in range(33, 127)]
    words = [f"\u2581{word}" for word in TINY_WORDS]  # sentencepiece's mark of a word's beginning
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -3.0)]
    pieces += [(word, -1.0) for word in words] + [(letter, -4.0) for letter in letters]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=length)


def random_t5(*, width: int, layers: int, heads: int, **settings: Any) -> Any:
    """A T5 encoder of version 1.1 (gated GELU) with random weights.

    Args:
        width: Dimension of the states.
        layers: Number of blocks.
        heads: Number of attention heads.
        settings: Further values of its config.
    """
    from transformers import T5Config, T5EncoderModel

    config = T5Config(
        d_model=width,
        num_layers=layers,
        num_heads=heads,
        feed_forward_proj="gated-gelu",
        **settings,
    )
    return T5EncoderModel(config)


def tiny_t5_encoder(tokenizer: Any) -> Any:
    """A T5 encoder of width 24."""
    sizes = {"vocab_size": len(tokenizer), "d_kv": 8, "d_ff": 32}
    return random_t5(width=24, layers=2, heads=2, dropout_rate=0.0, **sizes).eval()
