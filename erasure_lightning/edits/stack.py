"""The edits in a component, one on another: their records, strengths and removal."""

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import takewhile
from typing import Any, NotRequired, TypedDict

import torch
from torch import Tensor, nn

from erasure_lightning.adapters.base import adapters_of, remove_adapters
from erasure_lightning.edits.changes import Change
from erasure_lightning.edits.components import EditedComponent

#: Attribute of a component that lists its applied edits.
APPLIED_EDITS = "erasure_edits"

#: Attribute of a component with its values beneath all edits, by plain name.
_UNEDITED_VALUES = "erasure_unedited"


class AppliedEdit(TypedDict):
    """Record of an edit in a component.

    Args:
        edit: Method and concepts.
        fingerprint: Its `edit_fingerprint`.
        concepts: The erased concepts, as plain values.
        path: Where it was read from; empty if it was not.
        transferred: Whether the component was another than that of the edit's base model.
        strength: Share of the edit that acts.
        applied: When it was applied, in nanoseconds since 1970: the order over all components,
            also of a pipeline that another process has pickled.
        before: Values beneath the edit, by plain name; none of an edit of adapters.
        after: Values of the edit, alike.
    """

    edit: str
    fingerprint: str
    concepts: list[dict[str, Any]]
    path: str
    transferred: bool
    strength: float
    applied: int
    before: NotRequired[dict[str, Tensor]]
    after: NotRequired[dict[str, Tensor]]


def applied_edits(module: nn.Module) -> list[AppliedEdit]:
    """Records of the edits applied to a component, the oldest first."""
    records: list[AppliedEdit] = vars(module).setdefault(APPLIED_EDITS, [])
    return records


def unedited_values(module: nn.Module) -> dict[str, Tensor]:
    """Values beneath all edits of a component, by plain name, of what its edits change."""
    values: dict[str, Tensor] = vars(module).setdefault(_UNEDITED_VALUES, {})
    return values


def add_edit(component: EditedComponent, record: AppliedEdit) -> None:
    """Adds the record of an edit whose values a component has.

    Args:
        component: The component.
        record: The record; its time is set.
    """
    unedited = unedited_values(component.module)
    for name, value in record.get("before", {}).items():
        unedited.setdefault(name, value)
    record["applied"] = time.time_ns()
    applied_edits(component.module).append(record)


def require_changeable(component: EditedComponent, record: AppliedEdit) -> None:
    """Raises unless another strength of an edit can be written and acts; adapters' always can.

    Raises:
        ErasureError: With the first obstacle and its remedy.
    """
    if "before" in record:
        component.require_changeable()
        component.require_unchanged(stacked_values(component.module))


def set_strength(component: EditedComponent, record: AppliedEdit, strength: float) -> None:
    """Sets the share of an edit that acts; edits above it act on as before."""
    record["strength"] = strength
    if "before" in record:
        component.write(stacked_values(component.module))
        return
    for adapter in adapters_of(component.module):
        adapter.strength = strength


def remove_edit(component: EditedComponent, record: AppliedEdit) -> None:
    """Takes an edit out of a component; edits beneath it and above it stay."""
    records = applied_edits(component.module)
    records[:] = [other for other in records if other is not record]
    if "before" not in record:
        remove_adapters(component.module)
        return
    component.write(stacked_values(component.module))
    unedited = unedited_values(component.module)
    for name in record["before"]:
        if not any(name in other.get("before", {}) for other in records):
            del unedited[name]


def held_edits(modules: Mapping[str, nn.Module]) -> list[dict[str, Any]]:
    """The edits in components, the oldest first, as in the metadata of an edit based on them.

    Args:
        modules: The components, by their names in the pipeline.
    """
    held: dict[str, dict[str, Any]] = {}
    records = [(name, record) for name in modules for record in applied_edits(modules[name])]
    for name, record in sorted(records, key=lambda pair: pair[1]["applied"]):
        keys = ("edit", "fingerprint", "concepts", "path", "strength")
        entry = {key: value for key, value in record.items() if key in keys}
        held.setdefault(record["fingerprint"], entry | {"components": []})
        held[record["fingerprint"]]["components"].append(name)
    return list(held.values())


@torch.no_grad()
def stacked_values(module: nn.Module, only: Collection[str] | None = None) -> dict[str, Tensor]:
    """Values that a component's edits give at their strengths, by plain name.

    Args:
        module: The component.
        only: Fingerprints of the edits that count; by default all do.
    """
    records = [
        record
        for record in _records_of_weights(module)
        if only is None or record["fingerprint"] in only
    ]
    unedited = unedited_values(module)
    return {name: _stacked(name, value, records) for name, value in unedited.items()}


def changes_by(module: nn.Module, record: AppliedEdit) -> dict[str, Change]:
    """Values beneath an edit and with it, at present, by plain name; none of adapters.

    What is beneath may differ from what was there when it was applied: edits have been removed, or
    have other strengths.

    Args:
        module: The component.
        record: Record of one of its edits.
    """
    beneath = [*takewhile(lambda other: other is not record, _records_of_weights(module))]
    unedited = unedited_values(module)
    return {
        name: Change(
            _stacked(name, unedited[name], beneath),
            _stacked(name, unedited[name], [*beneath, record]),
        )
        for name in record.get("before", {})
    }


def _records_of_weights(module: nn.Module) -> Iterator[AppliedEdit]:
    return (record for record in applied_edits(module) if "before" in record)


def _stacked(name: str, unedited: Tensor, records: Sequence[AppliedEdit]) -> Tensor:
    """A value with the edits of it, one on another.

    An edit has its own values as long as all beneath it is as it was when it was trained;
    else its difference is added to what is beneath. One that was transferred has its own values
    over whatever is beneath.
    """
    value = unedited
    for record in records:
        if name not in record["before"]:
            continue
        before = record["before"][name]
        after = record["after"][name].to(before)
        strength = record["strength"]
        beneath = value.to(before)
        if record["transferred"] or torch.equal(beneath, before):
            value = after if strength == 1 else beneath.lerp(after, strength)
        else:
            change = strength * (after.float() - before.float())
            value = value.float() + change.to(value.device)
    return value.to(unedited)
