"""Drift of images that an edited model re-generates from inverted latents."""

from typing import NamedTuple

from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio

from erasure_lightning.metrics.scorer import Scorer

#: PSNR of equal images in dB, which would be infinite: no number that JSON holds.
MAX_PSNR = 100.0


class Drift(NamedTuple):
    """Distances between an image, its reconstruction by the original and by the edited model.

    Args:
        reconstruction_psnr: PSNR of the original's reconstruction to the input image, in dB: the
            loss by inversion and autoencoder.
        purified_psnr: PSNR of the edited model's image to that reconstruction, in dB: the effect of
            the edit.
        purified_l1: Mean absolute difference of the same pair, 0..1.
        purified_features: Cosine distance of the scorer's features of the same pair, 0..2;
            ``None`` without a scorer.
    """

    reconstruction_psnr: float
    purified_psnr: float
    purified_l1: float
    purified_features: float | None


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """PSNR of images ``(B, 3, H, W)`` in 0..1: ``(B,)`` in dB, at most `MAX_PSNR`."""
    ratios = peak_signal_noise_ratio(a, b, data_range=1.0, reduction="none", dim=(1, 2, 3))
    return ratios.clamp(max=MAX_PSNR)


def drifts(
    inputs: Tensor, reconstructed: Tensor, purified: Tensor, scorer: Scorer | None
) -> list[Drift]:
    """The drift of each of ``B`` images ``(B, 3, H, W)`` in 0..1.

    Args:
        inputs: The images.
        reconstructed: The images as the original generates them again.
        purified: The images as the edited model generates them again.
        scorer: Network for the distance of features; None for no such distance.
    """
    reconstruction = psnr(reconstructed, inputs).tolist()
    edit = psnr(purified, reconstructed).tolist()
    l1 = (purified - reconstructed).abs().flatten(1).mean(dim=1).tolist()
    features: list[float | None] = [None] * len(inputs)
    if scorer is not None:
        features = (
            1 - (scorer.images(purified) * scorer.images(reconstructed)).sum(dim=1)
        ).tolist()
    return [Drift(*figures) for figures in zip(reconstruction, edit, l1, features, strict=True)]
