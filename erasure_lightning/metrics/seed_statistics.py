"""Means that keep one sum a seed, so that every figure comes with an interval."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity
from torchmetrics import Metric

from erasure_lightning.metrics.estimates import Estimate

#: 97.5 % quantiles of Student's t at 1 to 30 degrees of freedom.
STUDENT = (
    12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281,
    2.2010, 2.1788, 2.1604, 2.1448, 2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860,
    2.0796, 2.0739, 2.0687, 2.0639, 2.0595, 2.0555, 2.0518, 2.0484, 2.0452, 2.0423,
)  # fmt: skip


def student(freedom: int) -> float:
    """Half the width of a 95 % interval in standard errors; infinite without any degree of freedom.

    Beyond the table the first two terms of Hill's expansion in ``1 / freedom``, right to four
    digits (Abramowitz and Stegun 26.7.5).
    """
    if freedom < 1:
        return math.inf
    if freedom <= len(STUDENT):
        return STUDENT[freedom - 1]
    z = 1.959964
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)


class SeedMean(Metric):
    """The mean over pictures, estimated over seeds; ranks add up what they measured.

    Args:
        seeds: Every seed that any rank will meet; a number stands for ``range``.
        least: Lower end of the metric's range, to which intervals are cut.
        most: Upper end.
    """

    full_state_update = False
    sums: Tensor
    counts: Tensor

    def __init__(self, seeds: Sequence[int] | int, least: float = 0.0, most: float = 1.0) -> None:
        super().__init__()
        self.places = {
            seed: i for i, seed in enumerate(range(seeds) if isinstance(seeds, int) else seeds)
        }
        self.least, self.most = least, most
        self.add_state("sums", torch.zeros(len(self.places)), dist_reduce_fx="sum")
        self.add_state("counts", torch.zeros(len(self.places)), dist_reduce_fx="sum")

    def update(self, values: Tensor, seeds: Sequence[int]) -> None:
        """Count pictures in.

        Args:
            values: What was measured of each, ``(B,)``.
            seeds: The ``B`` seeds they were drawn with.
        """
        places = torch.tensor(
            [self.places[seed] for seed in seeds], device=self.sums.device, dtype=torch.long
        )
        self.sums.index_add_(0, places, values.to(self.sums))
        self.counts.index_add_(0, places, torch.ones_like(values).to(self.counts))

    def compute(self) -> Estimate:
        """The estimate; with a single seed its interval is the whole range."""
        seen = self.counts > 0
        means = (self.sums[seen] / self.counts[seen]).cpu().double().clamp(self.least, self.most)
        number, mean = len(means), float(means.mean())
        error = float(means.std()) / math.sqrt(number) if number > 1 else 1.0
        reach = student(number - 1) * error
        low, high = max(mean - reach, self.least), min(mean + reach, self.most)
        return Estimate(mean, low, high, number, int(self.counts.sum()))


class CandidateLabels(NamedTuple):
    """What a picture is compared with to see what it shows.

    Args:
        labels: Unit vectors of the answers, ``(N, D)``.
        right: Which of them count, boolean ``(N,)``.
    """

    labels: Tensor
    right: Tensor


class RecognitionRate(SeedMean):
    """Share of pictures whose nearest label is one of those that count."""

    def update(  # type: ignore[override]
        self, images: Tensor, questions: Sequence[CandidateLabels], seeds: Sequence[int]
    ) -> None:
        """Count pictures in.

        Args:
            images: Their unit vectors, ``(B, D)``.
            questions: What each is compared with.
            seeds: The ``B`` seeds they were drawn with.
        """
        hits = [
            q.right[(q.labels @ image).argmax()] for image, q in zip(images, questions, strict=True)
        ]
        super().update(torch.stack(hits), seeds)


class _Cosine(SeedMean):
    """Mean cosine of paired vectors."""

    def __init__(self, seeds: Sequence[int] | int) -> None:
        super().__init__(seeds, least=-1.0)

    def update(self, ours: Tensor, theirs: Tensor, seeds: Sequence[int]) -> None:  # type: ignore[override]
        """Count pairs in, ``(B, D)`` each."""
        super().update(cosine_similarity(ours, theirs, dim=-1), seeds)


class ImageText(_Cosine):
    """Mean cosine of a picture and the text that asked for it, both as the scorer sees them."""


class FeatureSimilarity(_Cosine):
    """Mean cosine of the edited and the original picture at the same seed, both as the scorer sees
    them.
    """


class PixelDistance(SeedMean):
    """Mean absolute difference of two pictures at the same seed, 0..1."""

    def update(self, ours: Tensor, theirs: Tensor, seeds: Sequence[int]) -> None:  # type: ignore[override]
        """Count pairs in, ``(B, 3, H, W)`` each."""
        super().update((ours - theirs).abs().flatten(1).mean(1), seeds)
