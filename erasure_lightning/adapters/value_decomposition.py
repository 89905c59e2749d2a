"""Adaptive value decomposition: the concept's share of each value of cross-attention is taken out.

Wang et al., Precise, Fast, and Low-cost Concept Erasure in Value Space (AdaVD), arXiv 2412.06143;
code WYuan1001/AdaVD @ c2d2962.
"""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from erasure_lightning.adapters.base import Adapter


class ValueDecomposition(Adapter):
    """Changes the value ``v`` of each token to ``v - sum_k delta(cos(v_k, v)) a_k v_k``.

    ``sum_k a_k v_k`` is the projection of ``v`` onto the span of the concepts' values ``v_k``, and
    ``delta(c) = scale / (1 + exp(-steepness (c - threshold)))`` lets tokens like a concept's lose
    more of it than others.

    Args:
        layer: A linear layer that computes the values of cross-attention.
        concepts: Number of concepts.
        first: First token that changes: 1 where the text begins with a start token, else 0.
        steepness, threshold, scale: Parameters of ``delta``.
    """

    def __init__(
        self,
        layer: nn.Module,
        *,
        concepts: int,
        first: int,
        steepness: float,
        threshold: float,
        scale: float,
    ) -> None:
        super().__init__(layer)
        shape = (concepts, len(cast(Tensor, layer.weight)))
        self.values = nn.Parameter(torch.zeros(shape), requires_grad=False)
        #: Rows ``w_k`` with ``a_k = w_k . v``: the dual basis of the values.
        self.duals = nn.Parameter(torch.zeros(shape), requires_grad=False)
        self.first = first
        self.steepness = steepness
        self.threshold = threshold
        self.scale = scale

    def forward(self, x: Tensor, output: Tensor) -> Tensor:
        """The values ``(B, L, E)`` without the concepts' shares."""
        values = self.values.float()
        tokens = output[:, self.first :].float()
        cosines = normalize(tokens, dim=2) @ normalize(values, dim=1).mT
        delta = self.scale * torch.sigmoid(self.steepness * (cosines - self.threshold))
        shares = delta * (tokens @ self.duals.float().mT)
        changed = (tokens - shares @ values).to(output)
        return torch.cat((output[:, : self.first], changed), dim=1)

    def is_identity(self) -> bool:
        """Whether there are no values yet."""
        return not self.values.any()


def dual_basis(values: Tensor) -> Tensor:
    """Rows ``w_k`` for which ``sum_k (w_k . v) v_k`` is the projection of ``v`` onto the span.

    Args:
        values: ``v_k``, ``(C, E)``.

    Returns:
        ``(C, E)``, in float64.
    """
    inverse: Tensor = torch.linalg.pinv(values.double())
    return inverse.mT
