"""The algebra of SPEED: retained rows of a map, their null space, and the update in it."""

from typing import NamedTuple, cast

import torch
from torch import Tensor

from erasure_lightning.errors import ErasureError

#: Number of rows that represent the empty prompt, with its start token.
_CENTRES = 3


class Rows(NamedTuple):
    """Text states from which every map's update is computed, in float64.

    Args:
        concepts: ``c``, ``(N, D)``.
        anchors: ``a``, ``(N, D)``.
        retained: ``p``, ``(M, D)``.
        empty: Columns of ``C``, ``(4, D)``, or ``(1, D)`` of a pooled vector.
    """

    concepts: Tensor
    anchors: Tensor
    retained: Tensor
    empty: Tensor


def refined(
    weight: Tensor, rows: Rows, copies: int, only_moved: bool, generator: torch.Generator
) -> Tensor:
    """The retained rows ``R`` of a map, filtered by influence and augmented, ``(M', D)``.

    Args:
        weight: ``W*``, ``(out, D)``.
        rows: Retained and redirected rows.
        copies: Number of noisy copies of each row, along the right singular vector of the least
            singular value; with 0 all rows are returned.
        only_moved: Drop rows that the unconstrained edit moves by no more than the mean.
        generator: Generator of the noise.
    """
    if not copies:
        return rows.retained
    influence = unconstrained(weight, rows)
    retained = above_mean(rows.retained, influence) if only_moved else rows.retained
    least = torch.linalg.svd(weight, full_matrices=False).Vh[-1]
    count = len(retained) * copies
    steps = torch.randn(count, 1, generator=generator, dtype=torch.float64).to(retained.device)
    augmented = retained.repeat_interleave(copies, dim=0) + steps * least
    return torch.cat((retained, above_mean(augmented, influence)))


def unconstrained(weight: Tensor, rows: Rows) -> Tensor:
    """``D0 = W* (B - T) (I + T)^-1`` ``(out, D)``: the edit without constraints."""
    gram, pull = moments(rows)
    identity = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    solution: Tensor = torch.linalg.solve(identity + gram, weight @ pull, left=False)
    return solution


def moments(rows: Rows) -> tuple[Tensor, Tensor]:
    """``T = mean c c^T`` and ``B - T = mean (a - c) c^T``, ``(D, D)`` both."""
    count = len(rows.concepts)
    gram = rows.concepts.mT @ rows.concepts / count
    pull = (rows.anchors - rows.concepts).mT @ rows.concepts / count
    return gram, pull


def above_mean(rows: Tensor, influence: Tensor) -> Tensor:
    """The rows that an edit ``(out, D)`` moves by more than the mean, or all if there are none."""
    distances = (rows @ influence.mT).norm(dim=1)
    above = distances > distances.mean()
    return rows[above] if bool(above.any()) else rows


def null_space(retained: Tensor, threshold: float) -> Tensor:
    """Orthonormal basis ``(D, d)`` of the range of ``P``, the null space of the retained rows.

    Args:
        retained: Rows ``R``, ``(M', D)``.
        threshold: Eigenvalue of their mean Gram matrix below which a direction is free.

    Raises:
        ErasureError: If no direction is free.
    """
    values, vectors = torch.linalg.eigh(retained.mT @ retained / len(retained))
    free: Tensor = vectors[:, values < threshold]
    if not free.shape[1]:
        raise ErasureError(
            "SPEED needs a direction that retained texts leave free; the least has"
            f" {values[0]:.2g}, and the threshold is {threshold:.2g}. Raise it, or retain fewer"
            " texts."
        )
    return free


def update(
    weight: Tensor, rows: Rows, free: Tensor, held: Tensor, ridge: float, soften: float
) -> Tensor:
    """``D`` ``(out, D)``, the constrained minimiser, solved in a basis of the null space.

    Args:
        weight: ``W*``, ``(out, D)``.
        rows: Redirected rows, and the empty prompt's.
        free: Basis of the null space, ``(D, d)``.
        held: Gram matrix of what retention callbacks retain, ``(D, D)``.
        ridge: ``r``.
        soften: ``l``.
    """
    gram, pull = moments(rows)
    identity = torch.eye(free.shape[1], dtype=free.dtype, device=free.device)
    inverse = torch.linalg.inv(free.mT @ (gram + held) @ free + ridge * identity)
    empty = free.mT @ rows.empty.mT
    softening = soften * torch.eye(empty.shape[1], dtype=free.dtype, device=free.device)
    system = empty.mT @ inverse @ empty + softening
    # A pseudo-inverse, as the system is 0 where the empty prompt's rows are retained already.
    constraint = identity - inverse @ empty @ torch.linalg.pinv(system, hermitian=True) @ empty.mT
    return cast(Tensor, weight @ pull @ free @ constraint @ inverse @ free.mT)


def centres(rows: Tensor, rounds: int = 100) -> Tensor:
    """Means ``(3, D)`` of three clusters of rows (Lloyd), initialised at equally spaced rows."""
    means = rows[torch.linspace(0, len(rows) - 1, _CENTRES).long()]
    for _ in range(rounds):
        nearest = torch.cdist(rows, means).argmin(dim=1)
        updated = means.clone()
        for i in range(_CENTRES):
            members = rows[nearest == i]
            if len(members):
                updated[i] = members.mean(dim=0)
        if torch.equal(updated, means):
            break
        means = updated
    return means
