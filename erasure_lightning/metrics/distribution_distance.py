"""Distances between two sets of pictures, by features: FID and KID, each with an interval."""

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

#: Parts that the pictures are left out in, to see how much hangs on them; more make it no surer,
#: only slower.
MOST_PARTS = 20


class SetDistance(Metric, ABC):
    """A distance of drawn pictures' features from a reference's; its interval is a jackknife's over
    seeds.

    A bootstrap would draw pictures twice, which both distances take for agreement. So each part of
    the seeds is left out once, and the spread of what remains gives the standard error (Efron and
    Stein 1981). Features of all ranks are brought together before anything is computed.
    """

    full_state_update = False
    #: Lower end of the distance's range.
    least = -math.inf
    drawn: list[Tensor]
    seeds: list[Tensor]
    reference: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        for name in ("drawn", "seeds", "reference"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, features: Tensor, seeds: Sequence[int]) -> None:
        """Count drawn pictures in.

        Args:
            features: Of ``B`` pictures, ``(B, D)``.
            seeds: The ``B`` seeds they were drawn with.
        """
        self.drawn.append(features)
        self.seeds.append(torch.tensor(seeds, device=features.device))

    def refer(self, features: Tensor) -> None:
        """Count pictures ``(B, D)`` of the reference in."""
        self._update_count += 1  # torchmetrics warns of a compute before any update
        self.reference.append(features)

    def compute(self) -> Estimate:
        """The estimate; the reference is taken as given, so that the interval is about the drawn
        pictures.
        """
        drawn, seeds, reference = (
            dim_zero_cat(part) for part in (self.drawn, self.seeds, self.reference)
        )
        known = torch.tensor(sorted(set(seeds.tolist())), device=seeds.device)
        parts = [part for part in known.tensor_split(min(len(known), MOST_PARTS)) if len(part)]
        whole = self.distance(drawn, reference)
        kept = [drawn[~torch.isin(seeds, part)] for part in parts]
        rest = [self.distance(some, reference) for some in kept if len(some) > 1]
        error = math.inf
        if len(rest) > 1:
            mean = sum(rest) / len(rest)
            error = math.sqrt(
                (len(rest) - 1) / len(rest) * sum((value - mean) ** 2 for value in rest)
            )
        reach = t_quantile(len(rest) - 1) * error
        return Estimate(
            whole, max(whole - reach, self.least), whole + reach, len(known), len(drawn)
        )

    @staticmethod
    @abstractmethod
    def distance(drawn: Tensor, reference: Tensor) -> float:
        """Of features ``(N, D)`` from features ``(M, D)``, at least two of each."""


class _Given(nn.Module):
    """Takes features for pictures, so that torchmetrics computes on them as they are."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_features = width

    def forward(self, features: Tensor) -> Tensor:
        return features


class Frechet(SetDistance):
    """Frechet distance of Gaussians with the features' means and covariances (FID, Heusel et al.
    2017).

    ``|m - m'|^2 + tr(S + S' - 2 (S S')^(1/2))``, computed by torchmetrics in float64. It is biased
    upwards in small
    sets: compare it at equal numbers of pictures only.
    """

    least = 0.0

    @staticmethod
    def distance(drawn: Tensor, reference: Tensor) -> float:
        """The Frechet distance."""
        metric = (
            FrechetInceptionDistance(_Given(drawn.shape[1]), normalize=True)
            .to(drawn.device)
            .set_dtype(torch.float64)
        )
        metric.update(reference.double(), real=True)
        metric.update(drawn.double(), real=False)
        return float(metric.compute())


class Kernel(SetDistance):
    """Squared maximum mean discrepancy under ``k(x, y) = (x.y / D + 1)^3``, unbiased (KID,
    Binkowski et al. 2018).

    ``mean of k(x, x') + mean of k(y, y') - 2 mean of k(x, y)`` over different pictures of each set,
    all of them and not torchmetrics' random subsets, so that nothing is drawn by lot. Around 0 for
    sets of one kind, as often below.
    """

    @staticmethod
    def distance(drawn: Tensor, reference: Tensor) -> float:
        """The discrepancy, in float64."""
        x, y = drawn.double(), reference.double()
        own = [
            (k.sum() - k.trace()) / (len(k) * (len(k) - 1))
            for k in (poly_kernel(x, x), poly_kernel(y, y))
        ]
        return float(own[0] + own[1] - 2 * poly_kernel(x, y).mean())
