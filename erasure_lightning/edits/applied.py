"""`Edit`: an edit in memory, and in the pipeline that it was applied to."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from erasure_lightning.adapters.base import adapters_of, remove_adapters
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
        places = self._places()
        for component, record in places:
            last = applied_edits(component.module)[-1]
            if last is not record:
                raise ErasureError(
                    f"Removing {edit_title(self.metadata)} needs it to be the last edit of"
                    f" {component.title}; found {last['edit']} on top."
                    " Remove that one first."
                )
        for component, record in places:
            if "before" in record:
                component.write(record["before"])
            else:
                remove_adapters(component.module)
            applied_edits(component.module).remove(record)
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

    def _distance(self, component: str) -> str:
        """How far a component's weights moved, where it is known what they were."""
        places = self._places() if self.pipeline else []
        for place, record in places:
            if place.name == component and "before" in record:
                before = torch.cat([v.flatten().float() for v in record["before"].values()])
                after = torch.cat(
                    [record["after"][n].flatten().to(before) for n in record["before"]]
                )
                return f", moved by {(after - before).norm() / before.norm():.2%} of their norm"
        return ""

    def _components(self) -> list[str]:
        return sorted({name.partition(".")[0] for name in self.tensors})

    def _places(self) -> list[tuple[EditedComponent, dict[str, Any]]]:
        """The components that hold the edit, each with its mark."""
        title = edit_title(self.metadata)
        names = self._components() if self.pipeline else []
        components = [EditedComponent(self.pipeline, name) for name in names]
        places = [
            (component, record)
            for component in components
            for record in applied_edits(component.module)
            if record["edit"] == title
        ]
        if not places:
            raise ErasureError(
                f"{title} needs to be applied to a pipeline first; call apply_edit(edit, pipeline)."
            )
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
