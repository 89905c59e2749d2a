"""Distances between the feature distributions of two sets of images: FID and KID with intervals."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import poly_kernel
from torchmetrics.utilities import dim_zero_cat

from erasure_lightning.metrics.estimates import Estimate
from erasure_lightning.metrics.seed_statistics import t_quantile

# Parts of the jackknife; more make it slower, not more precise.
_MAX_PARTS = 20


class DistributionDistance(Metric, ABC):
    """Distance of generated images' features from a reference's, with a jackknife interval.

    A bootstrap would repeat images, which both distances take for agreement. So each part of the
    seeds is left out once, and the spread of the remaining distances gives the standard error
    (Efron and Stein 1981). Features of all ranks are gathered before anything is computed.
    """

    full_state_update = False
    #: Lower end of the distance's range.
    least = -math.inf
    generated: list[Tensor]
    seeds: list[Tensor]
    reference: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        for name in ("generated", "seeds", "reference"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, features: Tensor, seeds: Sequence[int]) -> None:
        """Add generated images.

        Args:
            features: Features of ``B`` images, ``(B, D)``.
            seeds: The ``B`` seeds they were generated with.
        """
        self.generated.append(features)
        # Seeds are 0 to 2**64 - 1, integers of torch from -2**63 on.
        self.seeds.append(torch.tensor([s - 2**63 for s in seeds], device=features.device))

    def update_reference(self, features: Tensor) -> None:
        """Add features ``(B, D)`` of reference images."""
        self._update_count += 1  # torchmetrics warns of a compute before any update
        self.reference.append(features)

    def compute(self) -> Estimate:
        """The estimate; its interval is about the generated images, for a fixed reference."""
        generated = dim_zero_cat(self.generated)
        seeds = dim_zero_cat(self.seeds)
        reference = dim_zero_cat(self.reference)
        distinct = torch.tensor(sorted(set(seeds.tolist())), device=seeds.device)
        parts = distinct.tensor_split(min(len(distinct), _MAX_PARTS))
        whole = self.distance(generated, reference)
        subsets = [generated[~torch.isin(seeds, part)] for part in parts if len(part)]
        distances = [self.distance(subset, reference) for subset in subsets if len(subset) > 1]
        error = math.inf
        count = len(distances)
        if count > 1:
            mean = sum(distances) / count
            error = math.sqrt((count - 1) / count * sum((value - mean) ** 2 for value in distances))
        half_width = t_quantile(count - 1) * error
        low = max(whole - half_width, self.least)
        return Estimate(whole, low, whole + half_width, len(distinct), len(generated))

    @staticmethod
    @abstractmethod
    def distance(generated: Tensor, reference: Tensor) -> float:
        """Distance of features ``(N, D)`` from features ``(M, D)``, at least two of each."""


class _PrecomputedFeatures(nn.Module):
    """Feature extractor of torchmetrics that returns its input, which is features already."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_features = width

    def forward(self, features: Tensor) -> Tensor:
        return features


class FrechetDistance(DistributionDistance):
    """Frechet distance of Gaussians fitted to the features (FID, Heusel et al. 2017).

    ``|m - m'|^2 + tr(S + S' - 2 (S S')^(1/2))`` of means ``m`` and covariances ``S``, computed by
    torchmetrics in float64. It is biased upwards in small sets: compare it at equal numbers of
    images only.
    """

    least = 0.0

    @staticmethod
    def distance(generated: Tensor, reference: Tensor) -> float:
        """The Frechet distance."""
        features = _PrecomputedFeatures(generated.shape[1])
        metric = FrechetInceptionDistance(features, normalize=True).to(generated.device)
        metric.set_dtype(torch.float64)
        metric.update(reference.double(), real=True)
        metric.update(generated.double(), real=False)
        return float(metric.compute())


class KernelDistance(DistributionDistance):
    """Unbiased squared maximum mean discrepancy of the features (KID, Binkowski et al. 2018).

    ``mean of k(x, x') + mean of k(y, y') - 2 mean of k(x, y)`` over distinct images of each set,
    with the kernel ``k(x, y) = (x.y / D + 1)^3``. It uses all images and not random subsets as
    torchmetrics does, so it is deterministic. For sets of one distribution it is 0 on average and
    may be negative.
    """

    @staticmethod
    def distance(generated: Tensor, reference: Tensor) -> float:
        """The discrepancy, in float64."""
        x = generated.double()
        y = reference.double()
        within = [
            (k.sum() - k.trace()) / (len(k) * (len(k) - 1))
            for k in (poly_kernel(x, x), poly_kernel(y, y))
        ]
        return float(within[0] + within[1] - 2 * poly_kernel(x, y).mean())
