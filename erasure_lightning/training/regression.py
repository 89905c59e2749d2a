"""Tensor algebra of losses, schedules and closed forms; imports torch and nothing of ours."""

from collections.abc import Iterable
from functools import reduce

import torch
from torch import Tensor


class Regression:
    """Normal equations, in float64, that edit every linear map of one input at once.

    For each map ``W*`` they minimise

        ``sum_i w_i |W k_i - W* a_i|^2 + sum_j w_j |(W - W*) p_j|^2 + ridge |W - W*|^2``

    (UCE, MACE, RECE; verified in code). The minimiser is ``W = W* (I + C)`` with one correction ``C
    = (sum_i w_i (a_i - k_i) k_i^T) G^-1`` for all, ``G = sum_i w_i k_i k_i^T + sum_j w_j p_j p_j^T
    + ridge I``: to solve for it costs the same for any number of maps. Few rows are kept as they
    are, since then ``C`` is a product of two slim matrices, and the maps need not meet all of it.

    Args:
        gram: What is to be kept so far, ``sum_j w_j p_j p_j^T``, ``(D, D)``.
    """

    def __init__(self, gram: Tensor) -> None:
        self.gram = gram.double().clone()
        #: ``sum_i w_i (a_i - k_i) k_i^T`` of all rows but the few that wait in `away`, ``w_i (a_i -
        #: k_i)``, and `keys`.
        self.pull: Tensor | None = None
        self.away = self.keys = self.gram[:0]

    def redirect(self, sources: Tensor, images: Tensor, weight: float = 1.0) -> None:
        """Let ``sources`` ``k_i`` come out as ``images`` ``a_i`` did, ``(N, D)`` both."""
        k, a = sources.double(), images.double()
        self.gram += weight * k.mT @ k
        self.away, self.keys = torch.cat((self.away, weight * (a - k))), torch.cat((self.keys, k))
        if 2 * len(self.keys) > len(
            self.gram
        ):  # then two slim products cost more than a square one
            self.pull, self.away, self.keys = self._pulled(), self.away[:0], self.keys[:0]

    def keep(self, rows: Tensor, weight: float = 1.0) -> None:
        """Let ``rows`` ``p_j`` ``(M, D)`` come out as before."""
        p = rows.double()
        self.gram += weight * p.mT @ p

    def expect(self, gram: Tensor, cross: Tensor, weight: float = 1.0) -> None:
        """`redirect` of sources and images known by their moments ``E k k^T`` and ``E a k^T``,
        ``(D, D)`` both.
        """
        self.gram += weight * gram
        self.pull = weight * (cross - gram) + (0 if self.pull is None else self.pull)

    def hold(self, gram: Tensor, weight: float = 1.0) -> None:
        """`keep` of rows known by their Gram matrix ``(D, D)``."""
        self.gram += weight * gram

    def _pulled(self) -> Tensor:
        pull = self.away.mT @ self.keys
        return pull if self.pull is None else self.pull + pull

    def _behind(self, right: Tensor, ridge: float) -> Tensor:
        """``right G^-1``, ``(N, D)``."""
        identity = torch.eye(len(self.gram), dtype=self.gram.dtype, device=self.gram.device)
        solved: Tensor = torch.linalg.solve(self.gram + ridge * identity, right, left=False)
        return solved

    def correction(self, ridge: float) -> Tensor:
        """``C`` ``(D, D)``; ``ridge``, above 0, is the pull towards the old maps."""
        return self._behind(self._pulled(), ridge)

    def solve(self, weights: Iterable[Tensor], ridge: float) -> list[Tensor]:
        """The new maps ``W* (I + C)`` of old ones ``(out, D)``, in their order, in float32 at
        least.
        """
        if self.pull is None:
            away, keys = self.away.mT, self._behind(self.keys, ridge)
            return [corrected(weight, away, keys) for weight in weights]
        correction = self.correction(ridge)
        return [corrected(weight, correction) for weight in weights]


def corrected(weight: Tensor, *factors: Tensor) -> Tensor:
    """``W* (I + C)`` ``(out, D)``, in the precision of ``W*``, in float32 at least: the change may
    be small.

    What is ill-conditioned, the solving for ``C``, has been done in float64; here that would double
    the cost.

    Args:
        weight: ``W*``.
        factors: Matrices whose product is ``C``, ``(D, D)``.
    """
    wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
    *first, last = (factor.to(wide.dtype) for factor in factors)
    return torch.addmm(wide, reduce(torch.matmul, first, wide), last)
