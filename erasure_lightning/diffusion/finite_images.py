"""Checks that generated images are finite."""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from erasure_lightning.backbones.base import Backbone
from erasure_lightning.errors import ErasureError

#: Remedies, by the model of the images.
_REMEDIES = {
    "original": (
        "Compare its scheduler with the one it was trained with (prediction_type,"
        " rescale_betas_zero_snr: epsilon cannot be drawn from at a signal-to-noise ratio of 0),"
        " and its weights with their source."
    ),
    "edited": "Erase again with a lower rate or fewer steps, or generate with less guidance.",
    "attacked": "Attack with a lower rate or fewer steps.",
}


def require_finite_images(
    images: Tensor,
    model: Literal["original", "edited", "attacked"],
    backbone: Backbone,
    prompts: Sequence[str],
    sampling: str = "",
) -> Tensor:
    """The images themselves; raises if they hold NaN or infinity.

    Args:
        images: Images or latents, ``(B, C, H, W)``.
        model: Kind of the model that generated them.
        backbone: That model.
        prompts: Prompt of each, ``B``.
        sampling: Name of the procedure; the class of the model's sampler by default.

    Raises:
        ErasureError: With the model, the first such prompt, the sampler and a remedy.
    """
    finite = images.isfinite().flatten(1).all(dim=1).tolist()
    if not all(finite):
        sampling = sampling or backbone.sampler_name
        raise ErasureError(
            f"The {model} model {backbone.name} generates NaN or infinity for"
            f" {prompts[finite.index(False)]!r} with {sampling}. {_REMEDIES[model]}"
        )
    return images
