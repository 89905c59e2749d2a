"""Installation of an edit in a pipeline: checks, values, adapters and records."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from erasure_lightning.adapters.base import AdapterPlan, adapters_of, refuse_saving, remove_adapters
from erasure_lightning.adapters.kinds import OF_LAST_STATES, install
from erasure_lightning.adapters.lora import merged_weights, weights_to_merge
from erasure_lightning.edits.components import (
    EditedComponent,
    component_fingerprints,
    is_same_component,
)
from erasure_lightning.edits.edit import StoredEdit
from erasure_lightning.edits.stack import (
    AppliedEdit,
    add_edit,
    applied_edits,
    remove_edit,
    stacked_values,
)
from erasure_lightning.errors import ErasureError


def install_edit(edit: StoredEdit, pipeline: Any, transfer: bool) -> list[str]:
    """Writes an edit into a pipeline; one that the pipeline already has is left as it is.

    Low-rank adapters are merged into the weights; other adapters are attached to layers, and such a
    pipeline cannot be saved.

    Args:
        edit: The edit.
        pipeline: A diffusers pipeline, or anything with the same component names.
        transfer: Whether to accept components of equal shapes and other weights.

    Returns:
        The components that needed ``transfer``.

    Raises:
        ErasureError: If the pipeline lacks a component, has another one, has another edit in it,
            would pass over the edit, or its weights cannot be edited.
    """
    changes = list(_changes(edit, pipeline))
    due = [change for change in changes if change.is_due(transfer)]
    with ExitStack() as undo:
        for change in due:
            change.install(undo)
        for change in due:
            change.write(undo)
        undo.pop_all()
    if any(change.plan for change in due) and hasattr(pipeline, "save_pretrained"):
        pipeline.save_pretrained = partial(_save_pretrained, pipeline)
    return [change.component.name for change in changes if change.transferred]


def holds_edit(edit: StoredEdit, pipeline: Any) -> bool:
    """Whether a pipeline has an edit already, at whatever strength."""
    return all(change.is_held() for change in _changes(edit, pipeline))


def require_installable(edit: StoredEdit, pipeline: Any) -> None:
    """Raises unless an edit that a pipeline holds could be installed again once it is removed.

    Raises:
        ErasureError: With the first obstacle and its remedy.
    """
    for change in _changes(edit, pipeline):
        change.component.require_writable(adapters=change.plan is not None)


def _changes(edit: StoredEdit, pipeline: Any) -> Iterator["_Change"]:
    record = AppliedEdit(
        edit=edit.title,
        fingerprint=edit.fingerprint,
        concepts=list(edit.metadata.get("concepts", [])),
        path=str(edit.path or ""),
        transferred=False,
        strength=1.0,
        applied=0,
    )
    for name in edit.components:
        values = edit.values_of(name)
        adapters = edit.adapters.get(name)
        plan = AdapterPlan(**adapters) if adapters else None
        component = EditedComponent(pipeline, name)
        if plan and plan.kind == "lora":
            values = _merged(component, values, record["fingerprint"])
            plan = None
        if plan and plan.kind in OF_LAST_STATES:
            _require_last_states(pipeline)
        original = edit.metadata.get("fingerprints", {}).get(name)
        yield _Change(component, values, plan, original, record)


def _merged(
    component: EditedComponent, values: Mapping[str, Tensor], fingerprint: str
) -> dict[str, Tensor]:
    """The weights of a low-rank edit in a component, those that it has once it is applied.

    Raises:
        ErasureError: If the component cannot be written, or its weights do not fit.
    """
    if not weights_to_merge(values):
        return merged_weights(values, {})
    for record in applied_edits(component.module):
        if record["fingerprint"] == fingerprint:
            return dict(record["after"])
    component.require_writable(adapters=False)
    return merged_weights(values, component.parameters())


def _require_last_states(pipeline: Any) -> None:
    """Raises if a pipeline would pass over a change of its text encoder's last states."""
    if hasattr(pipeline, "text_encoder_2"):
        raise ErasureError(
            "The edit needs a pipeline that reads the last states of one text encoder, as those of"
            f" Stable Diffusion 1.x and 2.x do; found {type(pipeline).__name__}, which would pass"
            " over it. Erase from that pipeline by another method."
        )


@dataclass
class _Change:
    """The change of one component by an edit.

    Args:
        component: The component.
        values: New values by plain name, those of adapters included.
        plan: Adapters that are attached to layers.
        original: `component_fingerprints` of the trained component; None in an edit of layout 1.
        record: What is recorded of the edit, without its values.
        transferred: Whether the component differs from the trained one.
    """

    component: EditedComponent
    values: dict[str, Tensor]
    plan: AdapterPlan | None
    original: dict[str, str] | None
    record: AppliedEdit
    transferred: bool = False

    def is_held(self) -> bool:
        """Whether the component has the change, at whatever strength."""
        if not self.component.differing(self.values):
            return not self._is_of_other_settings()
        expected = stacked_values(self.component.module) if self._own_records() else {}
        return bool(expected) and not self.component.differing(expected)

    def _is_of_other_settings(self) -> bool:
        """Whether the component's adapters are another edit's, with the same tensors."""
        adapters = [record for record in self._records() if "before" not in record]
        return self.plan is not None and bool(adapters) and not self._own_records()

    def is_due(self, transfer: bool) -> bool:
        """Whether the component does not have the change yet.

        Raises:
            ErasureError: If it cannot be written, or would change no value.
        """
        if self.is_held():
            has_effect = self._records() or self.plan is not None or not self._is_own()
            self._require_effect(bool(has_effect))
            self.transferred = any(record["transferred"] for record in self._own_records())
            return False
        self.component.require_writable(adapters=self.plan is not None)
        if adapters_of(self.component.module) and (self.plan or not transfer):
            raise ErasureError(
                f"The edit needs {self.component.title} without adapters; found those of another"
                f" edit{self._last_edit()}. Load the pipeline again, or erase all concepts in one"
                " fit."
            )
        if not self.plan:
            self.component.require_shapes(self.values)
        self.transferred = not self._is_own()
        if self.transferred and not transfer:
            self._refuse()
        return True

    def _is_own(self) -> bool:
        """Whether the component is the one that the edit was trained on."""
        return self.original is not None and is_same_component(
            self.original, component_fingerprints(self.component.module)
        )

    def _refuse(self) -> None:
        title = self.component.title
        if self.original is None:
            actual = "an edit of an earlier version, without fingerprints. Fit it again"
        elif self._records():
            cure = (
                "Remove that one first"  # compose adds weights alone
                if self.plan
                else "Add the two by compose (`erasure compose`) and apply the sum to the original"
            )
            actual = f"one that holds another edit{self._last_edit()}. {cure}"
        elif self.original["native"] == self.original["bfloat16"] and self.component.is_float16():
            actual = (
                "float16, by which a bfloat16 base is not known. Load it in float32 or bfloat16"
            )
        else:
            actual = (
                "another of equal shapes, or one that was changed since. Apply it to its base model"
            )
        raise ErasureError(
            f"The edit needs {title} to be the {self.component.name} of its base model;"
            f" found {actual}, or accept it with apply_edit(..., transfer=True)."
        )

    def _last_edit(self) -> str:
        return "".join(f" ({record['edit']})" for record in self._records()[-1:])

    def _records(self) -> list[AppliedEdit]:
        return applied_edits(self.component.module)

    def _own_records(self) -> list[AppliedEdit]:
        """Records of this very edit."""
        return [r for r in self._records() if r["fingerprint"] == self.record["fingerprint"]]

    def install(self, undo: ExitStack) -> None:
        """Installs the adapters, if any.

        Args:
            undo: Receives their removal.

        Raises:
            ErasureError: If they do not fit or have no effect.
        """
        if self.plan is None:
            return
        module = self.component.module
        undo.callback(remove_adapters, module)
        with torch.random.fork_rng(devices=[]):  # the values that layers begin with are replaced
            install(module, self.plan)
        self.component.require_shapes(self.values)
        self.component.write(self.values)
        self._require_effect(not all(adapter.is_identity() for adapter in adapters_of(module)))

    def write(self, undo: ExitStack) -> None:
        """Writes the values and records the edit, with the values that were there before.

        Args:
            undo: Receives the restoration of these.

        Raises:
            ErasureError: If the values are not there afterwards.
        """
        record = self.record.copy()
        record["transferred"] = self.transferred
        if self.plan is None:
            parameters = self.component.parameters()
            before = {name: parameters[name].detach().clone() for name in self.values}
            record["before"] = before
            record["after"] = self.values
            undo.callback(self.component.copy, before)
            self.component.write(self.values)
        add_edit(self.component, record)
        undo.callback(remove_edit, self.component, record)

    def _require_effect(self, has: bool) -> None:
        if not has:
            parameter = next(iter(self.component.parameters().values()))
            dtype = str(parameter.dtype).removeprefix("torch.")
            raise ErasureError(
                f"The edit needs to change {self.component.title}; in {dtype} all of its"
                f" {len(self.values)} tensors equal the original's. Train it for more steps, or"
                " load the pipeline in float32."
            )


def _save_pretrained(pipeline: Any, *args: Any, **kwargs: Any) -> Any:
    """A pipeline's ``save_pretrained``, which raises while a component has adapters."""
    for component in vars(pipeline).values():
        if isinstance(component, nn.Module) and adapters_of(component):
            refuse_saving(component)
    return type(pipeline).save_pretrained(pipeline, *args, **kwargs)
