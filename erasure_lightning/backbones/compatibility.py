"""Checks that the components of a pipeline fit together, by their configs."""

from typing import Any

from erasure_lightning.errors import ErasureError


def require_tokens(title: str, tokenizer: Any, tower: str, config: Any) -> None:
    """Raises unless every id and position of a tokenizer has an embedding, and words come first.

    Args:
        title: Name of the tokenizer in messages.
        tokenizer: A tokenizer of CLIP or T5.
        tower: Name of its text encoder.
        config: Config of the text encoder.

    Raises:
        ErasureError: If the tokenizer has more ids or positions, or pads on the left.
    """
    last = max(tokenizer.get_vocab().values())
    if last >= config.vocab_size:
        raise ErasureError(
            f"The {title} needs a {tower} with {last + 1} embeddings; found {config.vocab_size}."
            f" Save the {tower} that its added tokens were trained with."
        )
    if tokenizer.padding_side != "right":
        raise ErasureError(
            f"The {title} needs padding_side right; found {tokenizer.padding_side}. Set it in"
            " tokenizer_config.json."
        )
    positions = getattr(config, "max_position_embeddings", None)  # T5's are relative
    if positions is not None and tokenizer.model_max_length > positions:
        raise ErasureError(
            f"The {title} needs a model_max_length of at most {positions},"
            f" which is what the {tower} reads; found {tokenizer.model_max_length}. Set it in"
            " tokenizer_config.json."
        )


def require_channels(
    name: str, denoiser: str, config: Any, vae: Any, patch: int = 1, *, variance: bool = False
) -> None:
    """Raises unless a denoiser's channels are those of the latents.

    Args:
        name: Name of the backbone.
        denoiser: Name of the denoiser's component.
        config: Its config.
        vae: Config of the autoencoder.
        patch: Latents that the denoiser reads as one.
        variance: Whether it may predict a variance beside each channel.

    Raises:
        ErasureError: If numbers differ.
    """
    channels = patch * vae["latent_channels"]
    outputs = (None, channels, 2 * channels) if variance else (None, channels)
    for side, allowed in {"in_channels": (None, channels), "out_channels": outputs}.items():
        if config[side] not in allowed:
            times = f"{patch} times as many" if patch > 1 else "as many"
            raise ErasureError(
                f"The {denoiser} of {name} needs {times} {side} as the vae has latent_channels;"
                f" found {config[side]} and {vae['latent_channels']}. Models for inpainting or"
                " editing are not read."
            )


def require_text_width(name: str, denoiser: str, setting: str, read: Any, width: int) -> None:
    """Raises unless a denoiser reads text states of the width that its text encoders give.

    Args:
        name: Name of the backbone.
        denoiser: Name of the denoiser's component.
        setting: Where its config has the width.
        read: The width, or the widths of its blocks.
        width: Width of the text states.

    Raises:
        ErasureError: If widths differ.
    """
    widths = set(read) if isinstance(read, (list, tuple)) else {read}
    if widths != {width}:
        needed = ", ".join(map(str, sorted(widths)))
        raise ErasureError(
            f"The {denoiser} of {name} needs text states of width {needed} ({setting}); found text"
            f" encoders of {width}. They belong to different models."
        )
