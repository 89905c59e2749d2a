"""Closed-form editing of linear maps by regularised least squares; depends on torch alone."""

from collections.abc import Iterable
from functools import reduce

import torch
from torch import Tensor


class Regression:
    """Normal equations, in float64, that edit every linear map of one input at once.

    For each map ``W*`` they minimise

        ``sum_i w_i |W k_i - W* a_i|^2 + sum_j w_j |(W - W*) p_j|^2 + ridge |W - W*|^2``

    (UCE, MACE, RECE; verified in code). The minimiser is ``W = W* (I + C)``, with one correction

        ``C = (sum_i w_i (a_i - k_i) k_i^T) G^-1``
        ``G = sum_i w_i k_i k_i^T + sum_j w_j p_j p_j^T + ridge I``

    for all maps, so that solving costs the same for any number of them. A few rows ``k_i`` are
    stored as they are: then ``C`` is a product of two slim matrices, and no map is multiplied by
    all of it.

    Args:
        gram: ``sum_j w_j p_j p_j^T`` of what is retained from the outset, ``(D, D)``.
    """

    def __init__(self, gram: Tensor) -> None:
        #: ``G`` without its ridge, ``(D, D)``.
        self.gram = gram.double().clone()
        #: ``sum_i w_i (a_i - k_i) k_i^T`` ``(D, D)`` of all rows but the few in `away` and `keys`;
        #: none while there are no others.
        self.pull: Tensor | None = None
        #: ``w_i (a_i - k_i)`` of the few rows that are stored as they are, ``(n, D)``.
        self.away = self.gram[:0]
        #: ``k_i`` of the same rows, ``(n, D)``.
        self.keys = self.gram[:0]

    def redirect(self, sources: Tensor, images: Tensor, weight: float = 1.0) -> None:
        """Adds the terms ``w_i |W k_i - W* a_i|^2``.

        Args:
            sources: Inputs ``k_i`` that are edited, ``(N, D)``.
            images: Inputs ``a_i`` to whose former outputs they are mapped, ``(N, D)``.
            weight: ``w_i`` of all of them, at least 0.
        """
        k = sources.double()
        a = images.double()
        self.gram += weight * k.mT @ k
        self.away = torch.cat((self.away, weight * (a - k)))
        self.keys = torch.cat((self.keys, k))
        # From here on two slim products would cost more than a square one.
        if 2 * len(self.keys) > len(self.gram):
            self.pull = self._total_pull()
            self.away = self.away[:0]
            self.keys = self.keys[:0]

    def keep(self, rows: Tensor, weight: float = 1.0) -> None:
        """Adds the terms ``w_j |(W - W*) p_j|^2``.

        Args:
            rows: Inputs ``p_j`` whose outputs are retained, ``(M, D)``.
            weight: ``w_j`` of all of them, at least 0.
        """
        p = rows.double()
        self.gram += weight * p.mT @ p

    def expect(self, gram: Tensor, cross: Tensor, weight: float = 1.0) -> None:
        """Adds the terms of `redirect` for random inputs.

        Args:
            gram: ``E k k^T``, ``(D, D)`` in float64.
            cross: ``E a k^T``, ``(D, D)`` in float64.
            weight: Weight of the terms, at least 0.
        """
        self.gram += weight * gram
        self.pull = weight * (cross - gram) + (0 if self.pull is None else self.pull)

    def hold(self, gram: Tensor, weight: float = 1.0) -> None:
        """Adds the terms of `keep`.

        Args:
            gram: Gram matrix ``sum_j p_j p_j^T`` of the rows, ``(D, D)`` in float64.
            weight: Weight of the terms, at least 0.
        """
        self.gram += weight * gram

    def _total_pull(self) -> Tensor:
        pull = self.away.mT @ self.keys
        return pull if self.pull is None else self.pull + pull

    def _times_inverse(self, left: Tensor, ridge: float) -> Tensor:
        """``left G^-1``, ``(N, D)``."""
        identity = torch.eye(len(self.gram), dtype=self.gram.dtype, device=self.gram.device)
        product: Tensor = torch.linalg.solve(self.gram + ridge * identity, left, left=False)
        return product

    def correction(self, ridge: float) -> Tensor:
        """``C`` ``(D, D)``; ``ridge``, above 0, is the pull towards the old maps."""
        return self._times_inverse(self._total_pull(), ridge)

    def solve(self, weights: Iterable[Tensor], ridge: float) -> list[Tensor]:
        """The new maps ``W* (I + C)`` of old ones ``(out, D)``, in order, at least in float32."""
        if self.pull is None:
            keys = self._times_inverse(self.keys, ridge)
            return [corrected_weight(weight, self.away.mT, keys) for weight in weights]
        correction = self.correction(ridge)
        return [corrected_weight(weight, correction) for weight in weights]


def corrected_weight(weight: Tensor, *factors: Tensor) -> Tensor:
    """``W* (I + C)`` ``(out, D)``, in the precision of ``W*`` but at least float32.

    Float32 because the change may be small. The ill-conditioned part, solving for ``C``, has been
    done in float64; here that would double the cost.

    Args:
        weight: ``W*``.
        factors: Matrices whose product is ``C``, ``(D, D)``.
    """
    wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
    *first, last = (factor.to(wide.dtype) for factor in factors)
    return torch.addmm(wide, reduce(torch.matmul, first, wide), last)
