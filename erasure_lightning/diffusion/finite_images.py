"""Pictures as they leave a model: finite numbers, or an error that names model, prompt and sampler."""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from erasure_lightning.backbones.base import Backbone
from erasure_lightning.errors import ErasureError

#: What to do, by whose pictures they are.
_REMEDIES = {
    "original": (
        "Compare its scheduler with the one it was trained with (prediction_type,"
        " rescale_betas_zero_snr: epsilon cannot be drawn from at a signal-to-noise ratio of 0),"
        " and its weights with their source."
    ),
    "edited": "Erase anew with a lower rate or fewer steps, or draw with less guidance.",
    "attacked": "Attack with a lower rate or fewer steps.",
}


def require_finite_images(
    pictures: Tensor,
    model: Literal["original", "edited", "attacked"],
    backbone: Backbone,
    prompts: Sequence[str],
    sampling: str = "",
) -> Tensor:
    """The pictures, unless they hold NaN or infinity.

    Args:
        pictures: Pictures or latents, ``(B, C, H, W)``.
        model: Whose they are.
        backbone: That model.
        prompts: What each was drawn for, ``B``.
        sampling: How they were drawn; the class of the model's own sampler by default.

    Raises:
        ErasureError: If they do, naming the model, the first such prompt, the sampler and what to
            do.
    """
    finite = pictures.isfinite().flatten(1).all(dim=1).tolist()
    if not all(finite):
        sampling = sampling or backbone.sampler_name
        raise ErasureError(
            f"The {model} model {backbone.name} draws NaN or infinity for"
            f" {prompts[finite.index(False)]!r} with {sampling}. {_REMEDIES[model]}"
        )
    return pictures
