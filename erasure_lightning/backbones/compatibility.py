"""Checks that the components of a pipeline fit together, by their configs."""

from collections.abc import Sequence
from typing import Any

from erasure_lightning.errors import ErasureError


def require_tokens(title: str, tokenizer: Any, tower: str, config: Any) -> None:
    """Raises unless every id and position of a tokenizer has an embedding.

    Args:
        title: Name of the tokenizer in messages.
        tokenizer: A `CLIPTokenizer`.
        tower: Name of its text encoder.
        config: Config of the text encoder.

    Raises:
        ErasureError: If the tokenizer has more ids or positions.
    """
    last = max(tokenizer.get_vocab().values())
    if last >= config.vocab_size:
        raise ErasureError(
            f"The {title} needs a {tower} with {last + 1} embeddings; found {config.vocab_size}."
            f" Save the {tower} that its added tokens were trained with."
        )
    if tokenizer.model_max_length > config.max_position_embeddings:
        raise ErasureError(
            f"The {title} needs a model_max_length of at most {config.max_position_embeddings},"
            f" which is what the {tower} reads; found {tokenizer.model_max_length}. Set it in"
            " tokenizer_config.json."
        )


def require_channels(name: str, unet: Any, vae: Any, towers: Sequence[Any]) -> None:
    """Raises unless the UNet's channels fit the latents, and its width the joined text states.

    Args:
        name: Name of the backbone.
        unet: Config of the UNet.
        vae: Config of the autoencoder.
        towers: Configs of the text encoders.

    Raises:
        ErasureError: If widths differ.
    """
    for side in ("in_channels", "out_channels"):
        if unet[side] != vae["latent_channels"]:
            raise ErasureError(
                f"The unet of {name} needs as many {side} as the vae has latent_channels; found"
                f" {unet[side]} and {vae['latent_channels']}. Models for inpainting or editing are"
                " not read."
            )
    width = sum(tower.hidden_size for tower in towers)
    read = unet.get("encoder_hid_dim") or unet["cross_attention_dim"]
    widths = set(read) if isinstance(read, (list, tuple)) else {read}
    if widths != {width}:
        needed = ", ".join(map(str, sorted(widths)))
        raise ErasureError(
            f"The unet of {name} needs text states of width {needed} (cross_attention_dim); "
            f"found text encoders of {width}. They belong to different models."
        )
