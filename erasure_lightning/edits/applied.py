"""`Edit`: an edit in memory, and in the pipeline that it was applied to."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from erasure_lightning.adapters.base import adapters_of, remove_adapters
from erasure_lightning.edits.changes import Change
from erasure_lightning.edits.components import EditedComponent
from erasure_lightning.edits.edit import (
    applied_edits,
    edit_title,
    install_edit,
    read_edit,
    write_edit,
)
from erasure_lightning.errors import ErasureError
from erasure_lightning.files.writing import EDIT_FILE


class Edit:
    """An edit: the tensors that were changed, what they were made from, and where they act.

    Args:
        tensors: Edited values by component and name, ``unet.down_blocks...``.
        metadata: Method, arguments, concepts, base model, fingerprints and versions.
    """

    def __init__(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
        self.tensors = dict(tensors)
        self.metadata = dict(metadata)
        self.pipeline: Any = None
        self._strength = 1.0
        #: What `install_edit` recorded of the edit, by component of the pipeline.
        self._records: dict[str, dict[str, Any]] = {}

    def __repr__(self) -> str:
        return f"Edit({edit_title(self.metadata)}, {len(self.tensors)} tensors)"

    def save(self, path: str | Path) -> Path:
        """Write the edit as a safetensors file with its metadata.

        Args:
            path: The file; it replaces an older one atomically.

        Returns:
            The file.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_edit(path, self.tensors, self.metadata)
        return path

    def apply(self, pipeline: Any, transfer: bool = False) -> Self:
        """Write the edit into a pipeline; one that holds it already is left as it is.

        Args:
            pipeline: A diffusers pipeline, or anything with the same component names.
            transfer: Accept components of equal shapes and other weights than those that the edit
                was made on; the metadata lists them as ``transferred``.

        Raises:
            ErasureError: If the pipeline lacks a component, has another one, holds another edit in
                it, or keeps its weights where an edit would not act.
        """
        self.metadata["transferred"] = install_edit(self.tensors, self.metadata, pipeline, transfer)
        self.pipeline = pipeline
        self._strength = 1.0
        title = edit_title(self.metadata)
        self._records = {
            name: record
            for name in self._components()
            for record in applied_edits(EditedComponent(pipeline, name).module)
            if record["edit"] == title
        }
        return self

    @property
    def strength(self) -> float:
        """Share of the edit that acts: 0 is the original, 1 the edit, beyond 1 further away."""
        return self._strength

    @strength.setter
    @torch.no_grad()
    def strength(self, value: float) -> None:
        if not 0 <= value < math.inf:
            raise ErasureError(f"An edit needs a strength of at least 0; found {value}.")
        for component, record in self._places():
            for adapter in adapters_of(component.module):
                adapter.strength = float(value)
            parameters = component.parameters()
            for name, before in record.get("before", {}).items():
                after = record["after"][name].to(before)
                parameters[name].copy_(after if value == 1 else before.lerp(after, value))
        self._strength = float(value)

    def remove(self) -> None:
        """Undo the edit: the pipeline has its former weights and no adapter of the edit.

        Raises:
            ErasureError: If the edit is in no pipeline, or another was applied on top of it.
        """
        for component, record in self._places():
            if "before" in record:
                component.write(record["before"])
            else:
                remove_adapters(component.module)
            applied_edits(component.module).pop()
        self._records = {}
        vars(self.pipeline).pop("save_pretrained", None)
        self.pipeline = None

    def report(self) -> str:
        """The edit in words and figures: method, concepts, and how far each component moved."""
        lines = [edit_title(self.metadata)]
        for concept in self.metadata.get("concepts", []):
            anchor = concept["anchor"] or "no prompt"
            lines.append(f"  {concept['name']} ({concept['kind']}) -> {anchor}")
        lines.append(f"  base model: {self.metadata.get('backbone', 'unknown')}")
        for name in self._components():
            values = [v for key, v in self.tensors.items() if key.partition(".")[0] == name]
            count = sum(value.numel() for value in values)
            lines.append(f"  {name}: {len(values)} tensors, {count:,} values{self._distance(name)}")
        return "\n".join(lines)

    def changes(self) -> dict[str, Change]:
        """Parameters before and after the edit, at its strength, by component and name.

        Raises:
            ErasureError: If the edit is in no pipeline, or its former weights are unknown.
        """
        return {
            f"{component.name}.{name}": Change(
                before, before.lerp(record["after"][name].to(before), self._strength)
            )
            for component, record in self._places()
            for name, before in record.get("before", {}).items()
        }

    def _distance(self, component: str) -> str:
        """How far a component's weights moved, where it is known what they were."""
        record = self._records.get(component, {})
        if "before" not in record:
            return ""
        before = torch.cat([value.flatten().float() for value in record["before"].values()])
        after = torch.cat([record["after"][n].flatten().to(before) for n in record["before"]])
        return f", moved by {(after - before).norm() / before.norm():.2%} of their norm"

    def _components(self) -> list[str]:
        return sorted({name.partition(".")[0] for name in self.tensors})

    def _places(self) -> list[tuple[EditedComponent, dict[str, Any]]]:
        """The components that hold the edit, each with its record.

        Raises:
            ErasureError: If there are none, their former weights are unknown, or another edit was
                applied on top.
        """
        title = edit_title(self.metadata)
        if self.pipeline is None:
            raise ErasureError(
                f"{title} needs to be applied to a pipeline first; call apply_edit(edit, pipeline)."
            )
        if not self._records:
            raise ErasureError(
                f"{title} needs the weights before it; found a pipeline that was loaded with the"
                " edit in it. Load the pipeline without it, and apply it there."
            )
        places = []
        for name, record in self._records.items():
            component = EditedComponent(self.pipeline, name)
            last = applied_edits(component.module)[-1:]
            if not last or last[0] is not record:
                found = f"{last[0]['edit']} on top. Remove that one" if last else "none. Apply it"
                raise ErasureError(
                    f"{title} needs to be the last edit of {component.title}; found {found} first."
                )
            places.append((component, record))
        return places


def load_edit(path: str | Path) -> Edit:
    """An edit from its file or its run folder, in no pipeline yet.

    Args:
        path: An ``edit.safetensors``, or the run folder that holds it.

    Raises:
        ErasureError: If the file is missing, is cut short, or is no edit.
    """
    path = Path(path)
    tensors, metadata = read_edit(path / EDIT_FILE if path.is_dir() else path)
    return Edit(tensors, metadata)


def apply_edit(edit: Edit | str | Path, pipeline: Any, transfer: bool = False) -> Edit:
    """Apply an edit to a pipeline: the one it was made on, or another with the same component.

    An edit of a text encoder transfers to every pipeline with the same text encoder, whatever its
    denoiser. An edit that the pipeline holds already is left as it is.

    Args:
        edit: An edit, its file, or the run folder that holds it.
        pipeline: A diffusers pipeline, or anything with the same component names.
        transfer: Accept components of equal shapes and other weights than those that the edit was
            made on; ``edit.metadata["transferred"]`` lists them.

    Returns:
        The edit, whose `Edit.strength` can be changed and which `Edit.remove` undoes.

    Raises:
        ErasureError: If the file cannot be read, or the pipeline lacks a component, has another
            one, holds another edit in it, or keeps its weights where an edit would not act.
    """
    return (edit if isinstance(edit, Edit) else load_edit(edit)).apply(pipeline, transfer)
