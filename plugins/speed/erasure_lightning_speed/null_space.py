"""The algebra of SPEED: which retained rows matter to a map, what they leave free, and the update
in there.
"""

from typing import NamedTuple, cast

import torch
from torch import Tensor

from erasure_lightning.errors import ErasureError

#: Rows that stand for the empty prompt, beside its start token.
CENTRES = 3


class Rows(NamedTuple):
    """Text states that every layer's update is made of, in float64.

    Args:
        concepts: ``c``, ``(N, D)``.
        anchors: ``a``, ``(N, D)``.
        retained: ``p``, ``(M, D)``.
        empty: Columns of ``C``, ``(4, D)``.
    """

    concepts: Tensor
    anchors: Tensor
    retained: Tensor
    empty: Tensor


def refined(
    weight: Tensor, rows: Rows, copies: int, only_moved: bool, generator: torch.Generator
) -> Tensor:
    """The retained rows that matter to a map, ``(M', D)``: filtered by influence, then augmented.

    Args:
        weight: ``W*``, ``(out, D)``.
        rows: What is retained and what is redirected.
        copies: Noisy copies of each row, along the direction that the map reads least; with none
            all rows are kept.
        only_moved: Drop rows that the unconstrained edit moves by no more than the mean.
        generator: Of the noise.
    """
    if not copies:
        return rows.retained
    influence = unconstrained(weight, rows)
    kept = above_mean(rows.retained, influence) if only_moved else rows.retained
    least = torch.linalg.svd(weight, full_matrices=False).Vh[-1]
    steps = torch.randn(len(kept) * copies, 1, generator=generator, dtype=torch.float64).to(
        kept.device
    )
    return torch.cat(
        (kept, above_mean(kept.repeat_interleave(copies, dim=0) + steps * least, influence))
    )


def unconstrained(weight: Tensor, rows: Rows) -> Tensor:
    """``D0 = W* (B - T) (I + T)^-1`` ``(out, D)``: the edit that nothing holds back."""
    gram, pull = moments(rows)
    identity = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    solved: Tensor = torch.linalg.solve(identity + gram, weight @ pull, left=False)
    return solved


def moments(rows: Rows) -> tuple[Tensor, Tensor]:
    """``T = mean c c^T`` and ``B - T = mean (a - c) c^T``, ``(D, D)`` both."""
    count = len(rows.concepts)
    return (
        rows.concepts.mT @ rows.concepts / count,
        (rows.anchors - rows.concepts).mT @ rows.concepts / count,
    )


def above_mean(rows: Tensor, influence: Tensor) -> Tensor:
    """The rows that an edit ``(out, D)`` moves by more than it moves the mean row; all if it moves
    all alike.
    """
    moved = (rows @ influence.mT).norm(dim=1)
    return rows[moved > moved.mean()] if bool((moved > moved.mean()).any()) else rows


def null_space(retained: Tensor, threshold: float) -> Tensor:
    """Directions in which the retained rows hardly reach, an orthonormal basis ``(D, d)`` of `P`'s
    range.

    Raises:
        ErasureError: If there are none.
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
    """``D`` ``(out, D)``, the constrained minimiser in the coordinates of the null space.

    Args:
        weight: ``W*``, ``(out, D)``.
        rows: What is redirected and what must stay.
        free: Basis of the null space, ``(D, d)``.
        held: Gram matrix of what else should stay, ``(D, D)``.
        ridge: ``r``.
        soften: ``l``.
    """
    gram, pull = moments(rows)
    identity = torch.eye(free.shape[1], dtype=free.dtype, device=free.device)
    inverse = torch.linalg.inv(free.mT @ (gram + held) @ free + ridge * identity)
    empty = free.mT @ rows.empty.mT
    tight = empty.mT @ inverse @ empty + soften * torch.eye(
        empty.shape[1], dtype=free.dtype, device=free.device
    )
    # Where the empty prompt's rows are retained already, nothing of them is left to constrain.
    constraint = identity - inverse @ empty @ torch.linalg.pinv(tight, hermitian=True) @ empty.mT
    return cast(Tensor, weight @ pull @ free @ constraint @ inverse @ free.mT)


def centres(rows: Tensor, rounds: int = 100) -> Tensor:
    """`CENTRES` means of clusters (Lloyd), ``(CENTRES, D)``, from rows at equal distances on."""
    found = rows[torch.linspace(0, len(rows) - 1, CENTRES).long()]
    for _ in range(rounds):
        nearest = torch.cdist(rows, found).argmin(dim=1)
        means = [
            rows[nearest == i].mean(dim=0) if (nearest == i).any() else found[i]
            for i in range(CENTRES)
        ]
        if torch.equal(moved := torch.stack(means), found):
            break
        found = moved
    return found
