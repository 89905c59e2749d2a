"""Edits as differences from one model: their sum, and the tensors that two of them change."""

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from erasure_lightning.adapters.lora import merged_weights, weights_to_merge
from erasure_lightning.edits.changes import components_of
from erasure_lightning.edits.edit import StoredEdit
from erasure_lightning.errors import ErasureError

#: Values by component and name, ``unet.down_blocks...``.
Values = Mapping[str, Tensor]


@dataclass(frozen=True)
class Overlap:
    """Tensors of a component that two edits change.

    Args:
        component: The component.
        edits: Titles of the two.
        changed: Number of its tensors that each changes.
        tensors: Names of those that both change.
        cosine: Cosine of the two differences there, -1..1; 0 if one of them is 0.
        sizes: Norm of each difference there, as a share of the weights' norm.
    """

    component: str
    edits: tuple[str, str]
    changed: tuple[int, int]
    tensors: list[str]
    cosine: float
    sizes: tuple[float, float]

    def __str__(self) -> str:
        one, other = self.changed
        first, second = self.sizes
        return (
            f"{self.component}: {len(self.tensors)} tensors are changed by both {self.edits[0]}"
            f" (of {one}) and {self.edits[1]} (of {other}); there the differences have a cosine of"
            f" {self.cosine:.3f}, and {first:.2%} and {second:.2%} of the weights' norm"
        )


def weight_names(tensors: Values) -> set[str]:
    """Names of the weights that an edit changes, by factors too."""
    return {name for name in tensors if ".lora_" not in name} | weights_to_merge(tensors)


def dense_values(edit: StoredEdit, base: Values) -> dict[str, Tensor]:
    """An edit as weights alone; low-rank adapters are merged, exactly.

    Args:
        edit: The edit.
        base: The model's weights beneath its low-rank factors (`weights_to_merge`).

    Raises:
        ErasureError: If it has adapters that act by prompt or image.
    """
    values = edit.tensors
    for component, plan in edit.adapters.items():
        if plan["kind"] != "lora":
            raise ErasureError(
                f"{edit.title} needs to be weights to be composed; found"
                f" {plan['kind']} adapters, which act by prompt or image and are no difference."
                " Apply it last, beside the others, with apply_edit(..., transfer=True)."
            )
        own = {name: value for name, value in values.items() if name.startswith(f"{component}.")}
        values = {name: value for name, value in values.items() if name not in own}
        values |= merged_weights(own, base)
    return values


def shared_names(edits: Sequence[Set[str]]) -> set[str]:
    """Names of the tensors that more than one edit changes, from those of each."""
    return {name for one, other in combinations(edits, 2) for name in one & other}


def summed(edits: Sequence[Values], strengths: Sequence[float], base: Values) -> dict[str, Tensor]:
    """The base with the differences of all edits, ``W + sum_i s_i (W_i - W)``.

    Args:
        edits: Values ``W_i`` of each edit.
        strengths: Their shares ``s_i``.
        base: Values ``W`` of the base; of what a single edit of strength 1 changes none is needed.
    """
    values: dict[str, Tensor] = {}
    for name in dict.fromkeys(name for edit in edits for name in edit):
        own = [(s, e[name]) for s, e in zip(strengths, edits, strict=True) if name in e]
        if len(own) == 1 and own[0][0] == 1:
            values[name] = own[0][1]
            continue
        weight = base[name].float()
        change = torch.stack([strength * (value.float() - weight) for strength, value in own])
        values[name] = (weight + change.sum(dim=0)).to(own[0][1])
    return values


def overlaps(titles: Sequence[str], edits: Sequence[Values], base: Values) -> Iterator[Overlap]:
    """Where each two edits change the same tensors, by component.

    Args:
        titles: Titles of the edits.
        edits: Their values.
        base: Values of the base.
    """
    for (title, one), (other_title, other) in combinations(zip(titles, edits, strict=True), 2):
        for component in components_of(one.keys() & other.keys()):
            start = f"{component}."
            names = sorted(name for name in one.keys() & other.keys() if name.startswith(start))
            weights = _joined(base, names)
            first, second = (_joined(edit, names) - weights for edit in (one, other))
            norms = first.norm() * second.norm()
            yield Overlap(
                component,
                (title, other_title),
                (
                    sum(name.startswith(start) for name in one),
                    sum(name.startswith(start) for name in other),
                ),
                names,
                float(first @ second / norms) if norms else 0.0,
                (float(first.norm() / weights.norm()), float(second.norm() / weights.norm())),
            )


def _joined(values: Values, names: Sequence[str]) -> Tensor:
    return torch.cat([values[name].flatten().double() for name in names])
