"""Images of a batch of requests."""

from typing import Literal

from torch import Tensor

from erasure_lightning.backbones.base import Backbone
from erasure_lightning.data.image_plan import ImageBatch
from erasure_lightning.diffusion.finite_images import require_finite_images
from erasure_lightning.diffusion.sampling import sample_images


def sample_batch(backbone: Backbone, batch: ImageBatch) -> Tensor:
    """Images ``(B, 3, H, W)`` in 0..1 of a batch of requests."""
    return sample_images(
        backbone,
        batch.prompts,
        batch.seeds,
        steps=batch.steps,
        guidance=batch.guidance,
        size=batch.size,
    )


def finite_images(
    backbone: Backbone, batch: ImageBatch, model: Literal["original", "edited"]
) -> Tensor:
    """Images ``(B, 3, H, W)`` in 0..1 of a batch of requests, none of which is NaN or infinite.

    Args:
        backbone: The model.
        batch: The requests.
        model: Name of the model in messages.

    Raises:
        ErasureError: If an image holds NaN or infinity.
    """
    return require_finite_images(sample_batch(backbone, batch), model, backbone, batch.prompts)
