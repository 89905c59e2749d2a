"""Tensor algebra of losses, schedules and closed forms; imports torch and nothing of ours."""

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import reduce
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, normalize

#: What a learning rate does behind its warm-up: it stays, or falls along a cosine to 0 at the end of the run.
Schedule = Literal["constant", "cosine"]


def mix(*parts: int) -> int:
    """One seed of several numbers; unlike a sum, neighbours never meet."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=7).digest(), "big")


def fingerprint(module: nn.Module, dtype: torch.dtype | None = None) -> str:
    """`digest` of a module's weights, in their order."""
    return digest(module.state_dict(), dtype)


def digest(tensors: Mapping[str, Tensor], dtype: torch.dtype | None = None) -> str:
    """A short hash of tensors: names, shapes and the first values of each.

    Args:
        tensors: By name; their order counts.
        dtype: A precision that values are rounded to first; by default they are taken as they are.
    """
    hashed = hashlib.sha256()
    for name, value in tensors.items():
        hashed.update(f"{name}{tuple(value.shape)}".encode())
        first = value.flatten()[:64]
        hashed.update(first.to(dtype or first.dtype).double().cpu().numpy().tobytes())
    return hashed.hexdigest()[:16]


def widen(parameters: Iterable[Tensor]) -> None:
    """Give parameters that are about to change float32 at least, in place; bfloat16 would swallow small steps."""
    for parameter in parameters:
        parameter.data = parameter.data.to(torch.promote_types(parameter.dtype, torch.float32))


def warm_cosine(warmup: int, total: int) -> Callable[[int], float]:
    """Factor of the learning rate at a step: linear to 1 over ``warmup`` steps, then a cosine to 0 at ``total``."""

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        share = (step - warmup) / max(total - warmup, 1)
        return 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))

    return factor


def rate_factor(schedule: Schedule, warmup: int, total: int) -> Callable[[int], float]:
    """Factor of the learning rate at a step, 0..1.

    Args:
        schedule: What follows the warm-up.
        warmup: Steps of linear rise from 0 to 1, at least 0.
        total: Steps of the run.
    """
    if schedule == "cosine":
        return warm_cosine(warmup, total)
    return lambda step: min((step + 1) / warmup, 1.0) if warmup else 1.0


def relations(rows: Tensor, columns: Tensor) -> Tensor:
    """Cosines of every row's vector with every column's, ``(N, D)`` and ``(M, D)`` to ``(N, M)``."""
    return normalize(rows, dim=-1) @ normalize(columns, dim=-1).mT


def cosine_gap(a: Tensor, b: Tensor) -> Tensor:
    """``1 - cos`` of paired vectors, ``(B, D)`` to ``(B,)``."""
    return 1 - cosine_similarity(a, b, dim=-1)


def row_mean(values: Tensor, where: Tensor) -> Tensor:
    """Mean over the marked positions of each row, ``(B, L)`` both, then over rows."""
    return ((values * where).sum(dim=1) / where.sum(dim=1).clamp(min=1)).mean()


def aligned(concept: Tensor, anchor: Tensor, length: int) -> Tensor:
    """Which position of the anchor's sentence stands for each position of the concept's.

    The sentences are equal but for one span. Before it positions agree; inside it the anchor's are stretched over the
    concept's; behind it they are shifted by the difference, so that end meets end.

    Args:
        concept: First position of the span and one past its last, ``(B, 2)``.
        anchor: The same of the anchor's sentence, ``(B, 2)``; an empty span starts where the concept's does.
        length: Positions of a sentence ``L``.

    Returns:
        Positions ``(B, L)``.
    """
    (start, stop), (first, last) = concept.unsqueeze(2).unbind(1), anchor.unsqueeze(2).unbind(1)
    place = torch.arange(length, device=concept.device)
    share = (place - start) / (stop - start - 1).clamp(min=1)
    inside = first + (share * (last - first - 1).clamp(min=0)).round().long()
    behind = place + (last - first) - (stop - start)
    return torch.where(place < start, place, torch.where(place < stop, inside, behind)).clamp(0, length - 1)


class Regression:
    """Normal equations, in float64, that edit every linear map of one input at once.

    For each map ``W*`` they minimise

        ``sum_i w_i |W k_i - W* a_i|^2 + sum_j w_j |(W - W*) p_j|^2 + ridge |W - W*|^2``

    (UCE, MACE, RECE; verified in code). The minimiser is ``W = W* (I + C)`` with one correction
    ``C = (sum_i w_i (a_i - k_i) k_i^T) G^-1`` for all, ``G = sum_i w_i k_i k_i^T + sum_j w_j p_j p_j^T + ridge I``: to
    solve for it costs the same for any number of maps. Few rows are kept as they are, since then ``C`` is a product of
    two slim matrices, and the maps need not meet all of it.

    Args:
        gram: What is to be kept so far, ``sum_j w_j p_j p_j^T``, ``(D, D)``.
    """

    def __init__(self, gram: Tensor) -> None:
        self.gram = gram.double().clone()
        #: ``sum_i w_i (a_i - k_i) k_i^T`` of all rows but the few that wait in `away`, ``w_i (a_i - k_i)``, and `keys`.
        self.pull: Tensor | None = None
        self.away = self.keys = self.gram[:0]

    def redirect(self, sources: Tensor, images: Tensor, weight: float = 1.0) -> None:
        """Let ``sources`` ``k_i`` come out as ``images`` ``a_i`` did, ``(N, D)`` both."""
        k, a = sources.double(), images.double()
        self.gram += weight * k.mT @ k
        self.away, self.keys = torch.cat((self.away, weight * (a - k))), torch.cat((self.keys, k))
        if 2 * len(self.keys) > len(self.gram):  # then two slim products cost more than a square one
            self.pull, self.away, self.keys = self._pulled(), self.away[:0], self.keys[:0]

    def keep(self, rows: Tensor, weight: float = 1.0) -> None:
        """Let ``rows`` ``p_j`` ``(M, D)`` come out as before."""
        p = rows.double()
        self.gram += weight * p.mT @ p

    def expect(self, gram: Tensor, cross: Tensor, weight: float = 1.0) -> None:
        """`redirect` of sources and images known by their moments ``E k k^T`` and ``E a k^T``, ``(D, D)`` both."""
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
        """The new maps ``W* (I + C)`` of old ones ``(out, D)``, in their order, in float32 at least."""
        if self.pull is None:
            away, keys = self.away.mT, self._behind(self.keys, ridge)
            return [corrected(weight, away, keys) for weight in weights]
        correction = self.correction(ridge)
        return [corrected(weight, correction) for weight in weights]


def corrected(weight: Tensor, *factors: Tensor) -> Tensor:
    """``W* (I + C)`` ``(out, D)``, in the precision of ``W*``, in float32 at least: the change may be small.

    What is ill-conditioned, the solving for ``C``, has been done in float64; here that would double the cost.

    Args:
        weight: ``W*``.
        factors: Matrices whose product is ``C``, ``(D, D)``.
    """
    wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
    *first, last = (factor.to(wide.dtype) for factor in factors)
    return torch.addmm(wide, reduce(torch.matmul, first, wide), last)


def remap(weights: Sequence[Tensor], sources: Tensor, images: Tensor, kept: Tensor, ridge: float) -> list[Tensor]:
    """Edit linear maps that share an input so that ``sources`` come out as ``images`` did, and ``kept`` as before.

    Args:
        weights: Maps ``W*``, each ``(out, D)``.
        sources: Inputs ``k_i`` to be redirected, ``(N, D)``.
        images: Inputs ``a_i`` whose outputs they are to have, ``(N, D)``.
        kept: Inputs ``p_j`` whose outputs must stay, ``(M, D)``.
        ridge: Pull towards the old maps, above 0.

    Returns:
        The new maps in the dtype of the old; `Regression` has the equations.
    """
    equations = Regression(sources.new_zeros(sources.shape[1], sources.shape[1]))
    equations.redirect(sources, images)
    equations.keep(kept)
    return equations.solve(weights, ridge)
