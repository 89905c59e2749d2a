"""Gated low-rank maps after cross-attention (Lee et al., GLoCE, arXiv 2503.12356).

Official code: Hyun1A/GLoCE @ 95e48ef, ``src/models/gloce.py``.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, one_hot

from erasure_lightning.adapters.base import Adapter

#: Gates of no concept are open: no score of an orthonormal basis exceeds 1.
_CLOSED = 2.0


class GatedLowRank(Adapter):
    """Replaces the output ``h`` of a pixel by ``b + U D (h - m)``, where a concept's gate is open.

    ``h' = (1 - s) h + s (b + U D (h - m))`` with the gate
    ``s = sigmoid(k (|V (h - g) / |h - g||^2 - c))``; of several concepts each pixel has the one
    whose gate is most open (verified in code). All gates are closed at initialisation.

    Args:
        layer: A diffusers cross-attention module.
        concepts: Number of concepts.
        rank: Rows of ``D``, at least 1.
        gate_rank: Rows of ``V``, at least 1.
    """

    def __init__(self, layer: nn.Module, *, concepts: int, rank: int, gate_rank: int) -> None:
        super().__init__(layer)
        width = cast(Any, layer).out_dim
        #: ``D`` and the transpose of ``U``.
        self.down = nn.Parameter(torch.zeros(concepts, rank, width))
        self.up = nn.Parameter(torch.zeros(concepts, rank, width))
        #: ``b`` and ``m``.
        self.bias = nn.Parameter(torch.zeros(concepts, width))
        self.mean = nn.Parameter(torch.zeros(concepts, width))
        #: ``V``, ``g``, ``c`` and ``k``.
        self.gate = nn.Parameter(torch.zeros(concepts, gate_rank, width))
        self.gate_mean = nn.Parameter(torch.zeros(concepts, width))
        self.centre = nn.Parameter(torch.full((concepts,), _CLOSED))
        self.slope = nn.Parameter(torch.full((concepts,), 1e4))

    def forward(self, x: Tensor, output: Tensor) -> Tensor:
        """``h'``, ``(B, pixels, D)``."""
        # The slope amplifies rounding errors of a score a thousand times.
        with torch.autocast(output.device.type, enabled=False):
            h = output.to(self.up.dtype)
            scores = gate_scores(h.unsqueeze(2), self.gate_mean, self.gate)
            openness, concept = (self.slope * (scores - self.centre)).sigmoid().max(dim=2)
            chosen = one_hot(concept, len(self.up)).to(h)
            inner = torch.einsum("bnd,crd->bncr", h, self.down)
            inner = inner - torch.einsum("cd,crd->cr", self.mean, self.down)
            changed = torch.einsum("bncr,bnc,crd->bnd", inner, chosen, self.up)
            changed = changed + chosen @ self.bias
            return h.lerp(changed, openness.unsqueeze(2)).to(output)

    def is_identity(self) -> bool:
        """Whether no gate can open."""
        return bool((self.centre >= _CLOSED).all())


def gate_scores(h: Tensor, mean: Tensor, basis: Tensor) -> Tensor:
    """``|V (h - g) / |h - g||^2``, in 0..1 for an orthonormal basis, ``(..., C)``.

    Args:
        h: Outputs, ``(..., C, D)``, or ``(..., 1, D)`` for all concepts.
        mean: ``g``, ``(C, D)``.
        basis: ``V``, ``(C, r, D)``.
    """
    return torch.einsum("...cd,crd->...cr", normalize(h - mean, dim=-1), basis).square().sum(dim=-1)
