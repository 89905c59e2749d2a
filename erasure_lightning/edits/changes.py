"""What an applied edit changes: weights before and after, and low-rank factors of it."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from erasure_lightning.checks import require
from erasure_lightning.errors import ErasureError

#: Segments of an edit's names that hold factors ``A`` and ``B`` of ``W + B A``.
_DOWN = ".lora_A."
_UP = ".lora_B."


class Change(NamedTuple):
    """A parameter before and after an edit."""

    before: Tensor
    after: Tensor

    @property
    def difference(self) -> Tensor:
        """``after - before`` in float32."""
        return self.after.float() - self.before.float()


@dataclass(frozen=True)
class LayerFactors:
    """A layer's difference ``up @ down``, rank ``r``.

    Args:
        down: ``(r, in)``; of a convolution ``(r, in, h, w)``.
        up: ``(out, r)``; of a convolution ``(out, r, 1, 1)``.
    """

    down: Tensor
    up: Tensor

    @property
    def rank(self) -> int:
        """The rank ``r``."""
        return len(self.down)

    def scaled(self, strength: float) -> "LayerFactors":
        """Factors of the product times a strength."""
        return LayerFactors(self.down, self.up * strength)

    def product(self) -> Tensor:
        """``up @ down``, of the shape of the layer's weight."""
        flat = self.up.flatten(1).float() @ self.down.flatten(1).float()
        return flat.view(len(self.up), *self.down.shape[1:])


class LowRank(NamedTuple):
    """Low-rank factors of an edit.

    Args:
        factors: By component and layer, ``unet.mid_block...to_k``.
        left_out: Parameters that no low-rank adapter can hold: biases and norms.
        error: Norm of what is lost over the norm of the whole difference.
    """

    factors: dict[str, LayerFactors]
    left_out: list[str]
    error: float


def low_rank(
    changes: Mapping[str, Change],
    own: Mapping[str, LayerFactors],
    rank: int | None = None,
    energy: float | None = None,
    unread: Collection[str] = (),
) -> LowRank:
    """Factors of every changed weight: the edit's own, or by singular values.

    Args:
        changes: Changed parameters by component and name.
        own: The factors of a low-rank edit, by component and layer.
        rank: Rank of each layer that has no factors, at least 1.
        energy: Share of the squared difference that each layer retains, above 0 and at most 1;
            0.999 where neither is given.
        unread: Components of which no reader loads a LoRA; their changes are left out.

    Raises:
        ErasureError: If a number is out of range, or no weight was changed.
    """
    require("A LoRA", at_least=1, rank=rank)
    require("A LoRA", above=0, at_most=1, energy=energy)
    factors: dict[str, LayerFactors] = {}
    left_out: list[str] = []
    whole = lost = 0.0
    for name, change in changes.items():
        difference = change.difference
        size = float(difference.square().sum())
        whole += size
        layer, _, leaf = name.rpartition(".")
        is_matrix = leaf == "weight" and difference.dim() in (2, 4)
        if name.partition(".")[0] in unread or not (is_matrix or layer in own):
            left_out.append(name)
            lost += size
        elif layer in own:
            factors[layer] = own[layer]
        elif difference.any():
            factors[layer] = _decomposed(difference, rank, energy or 0.999)
            lost += float((difference - factors[layer].product()).square().sum())
    if not factors:
        raise ErasureError(
            f"A LoRA needs changed weights of linear layers or convolutions; found"
            f" {len(left_out)} other changes. Export it as `diff` or `component`."
        )
    return LowRank(factors, left_out, (lost / whole) ** 0.5 if whole else 0.0)


def edit_factors(tensors: Mapping[str, Tensor], strength: float) -> dict[str, LayerFactors]:
    """The factors that a low-rank edit has at a strength, by component and layer."""
    factors = {}
    for name, down in tensors.items():
        layer, down_marker, rest = name.partition(_DOWN)
        if down_marker:
            factors[layer] = LayerFactors(down, tensors[f"{layer}{_UP}{rest}"]).scaled(strength)
    return factors


def _decomposed(difference: Tensor, rank: int | None, energy: float) -> LayerFactors:
    """The best factors of a rank, or of the least rank that retains an energy."""
    left, values, right = torch.linalg.svd(difference.flatten(1), full_matrices=False)
    if rank is None:
        shares = values.square().cumsum(0) / values.square().sum()
        rank = int((shares < energy - 1e-7).sum()) + 1
    rank = min(rank, len(values))
    roots = values[:rank].sqrt()
    down = roots.unsqueeze(1) * right[:rank]
    up = left[:, :rank] * roots
    if difference.dim() == 4:
        return LayerFactors(down.view(rank, *difference.shape[1:]), up[:, :, None, None])
    return LayerFactors(down.contiguous(), up.contiguous())


def components_of(names: Iterable[str]) -> list[str]:
    """The components that parameters belong to, in order."""
    return sorted({name.partition(".")[0] for name in names})
