"""How far pictures of an edited model drifted from the original's."""

from typing import NamedTuple

from torch import Tensor

from erasure_lightning.metrics.scorer import Scorer

#: PSNR of equal pictures, which is infinite and so no number that JSON holds.
MOST = 100.0


class Drift(NamedTuple):
    """What became of a picture that was inverted and drawn again.

    Args:
        reconstruction_psnr: The original's reconstruction against the given picture, in dB: what
            inversion and autoencoder lose.
        purified_psnr: The edited model's picture against that reconstruction, in dB: what the edit
            moved.
        purified_l1: The same as mean absolute difference, 0..1.
        purified_features: The same as cosine distance of the scorer's features, 0..2; ``None``
            without a scorer.
    """

    reconstruction_psnr: float
    purified_psnr: float
    purified_l1: float
    purified_features: float | None


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of pictures ``(B, 3, H, W)`` in 0..1, ``(B,)`` in dB, at most
    `MOST`.
    """
    return (-10 * (a - b).square().flatten(1).mean(dim=1).log10()).clamp(max=MOST)


def drifts(
    given: Tensor, reconstructed: Tensor, purified: Tensor, scorer: Scorer | None
) -> list[Drift]:
    """The drift of each of ``B`` pictures ``(B, 3, H, W)`` in 0..1."""
    lost, moved = psnr(reconstructed, given).tolist(), psnr(purified, reconstructed).tolist()
    l1 = (purified - reconstructed).abs().flatten(1).mean(dim=1).tolist()
    features: list[float | None] = [None] * len(given)
    if scorer is not None:
        features = (
            1 - (scorer.images(purified) * scorer.images(reconstructed)).sum(dim=1)
        ).tolist()
    return [Drift(*figures) for figures in zip(lost, moved, l1, features, strict=True)]
