"""Image metrics as means over seeds, each with a 95 % confidence interval."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity
from torchmetrics import Metric

from erasure_lightning.metrics.estimates import Estimate


def t_quantile(freedom: int) -> float:
    """Half the width of a 95 % interval in standard errors: Student's t at 97.5 %.

    Args:
        freedom: Degrees of freedom; infinite without any.
    """
    from scipy.special import stdtrit  # scipy.stats has the same, and takes 1.5 s to import

    return float(stdtrit(freedom, 0.975)) if freedom > 0 else math.inf


class SeedMean(Metric):
    """Mean over images, with the interval of Student's t over the means of seeds.

    Sums and counts are kept for each seed and added up over ranks.

    Args:
        seeds: All seeds of all ranks.
        least: Lower end of the metric's range, to which intervals are cut.
        most: Upper end.
    """

    full_state_update = False
    sums: Tensor
    counts: Tensor

    def __init__(self, seeds: Sequence[int], least: float = 0.0, most: float = 1.0) -> None:
        super().__init__()
        self.places = {seed: place for place, seed in enumerate(seeds)}
        self.least = least
        self.most = most
        self.add_state("sums", torch.zeros(len(self.places)), dist_reduce_fx="sum")
        self.add_state("counts", torch.zeros(len(self.places)), dist_reduce_fx="sum")

    def update(self, values: Tensor, seeds: Sequence[int]) -> None:
        """Add images.

        Args:
            values: The measured value of each, ``(B,)``.
            seeds: Their ``B`` seeds.
        """
        places = torch.tensor(
            [self.places[seed] for seed in seeds], device=self.sums.device, dtype=torch.long
        )
        self.sums.index_add_(0, places, values.to(self.sums))
        self.counts.index_add_(0, places, torch.ones_like(values).to(self.counts))

    def compute(self) -> Estimate:
        """Mean and interval; the latter is the whole range for a single seed."""
        seen = self.counts > 0
        sums, counts = (state[seen].cpu().double() for state in (self.sums, self.counts))
        means = (sums / counts).clamp(self.least, self.most)
        number = len(means)
        mean = float(means.mean())
        error = float(means.std()) / math.sqrt(number) if number > 1 else 1.0
        reach = t_quantile(number - 1) * error
        low = max(mean - reach, self.least)
        high = min(mean + reach, self.most)
        return Estimate(mean, low, high, number, int(self.counts.sum()))


class CandidateLabels(NamedTuple):
    """Labels that an image is classified by, and the correct ones among them.

    Args:
        labels: Unit vectors of the labels, ``(N, D)``.
        right: Which of them count as correct, boolean ``(N,)``.
    """

    labels: Tensor
    right: Tensor


class RecognitionRate(SeedMean):
    """Share of images whose nearest label is a correct one: zero-shot accuracy."""

    def update(  # type: ignore[override]
        self, images: Tensor, candidates: Sequence[CandidateLabels], seeds: Sequence[int]
    ) -> None:
        """Add images.

        Args:
            images: Their unit vectors, ``(B, D)``.
            candidates: The labels of each.
            seeds: Their ``B`` seeds.
        """
        hits = [
            q.right[(q.labels @ image).argmax()]
            for image, q in zip(images, candidates, strict=True)
        ]
        super().update(torch.stack(hits), seeds)


class MeanCosine(SeedMean):
    """Mean cosine of paired features: of an image and its prompt (CLIP score), or of two images."""

    def __init__(self, seeds: Sequence[int]) -> None:
        super().__init__(seeds, least=-1.0)

    def update(self, ours: Tensor, theirs: Tensor, seeds: Sequence[int]) -> None:  # type: ignore[override]
        """Add pairs, ``(B, D)`` each."""
        super().update(cosine_similarity(ours, theirs, dim=-1), seeds)


class PixelDistance(SeedMean):
    """Mean absolute difference of two images of the same seed, 0..1."""

    def update(self, ours: Tensor, theirs: Tensor, seeds: Sequence[int]) -> None:  # type: ignore[override]
        """Add pairs, ``(B, 3, H, W)`` each."""
        super().update((ours - theirs).abs().flatten(1).mean(1), seeds)
