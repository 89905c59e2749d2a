"""`Edit`: an edit in memory, and in the pipeline that it was applied to."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from torch import Tensor, nn

from erasure_lightning.adapters.base import adapters_of
from erasure_lightning.checks import require
from erasure_lightning.edits import base_edits, stack
from erasure_lightning.edits.changes import Change
from erasure_lightning.edits.components import EditedComponent
from erasure_lightning.edits.description import describe_edit
from erasure_lightning.edits.edit import StoredEdit, read_edit
from erasure_lightning.edits.export import Export, HeldEdit, write_export
from erasure_lightning.edits.export_request import ExportRequest
from erasure_lightning.edits.installation import holds_edit, install_edit
from erasure_lightning.edits.places import edit_places, edit_records
from erasure_lightning.errors import ErasureError
from erasure_lightning.files.arguments import constructing


class Edit(StoredEdit):
    """An edit: the changed tensors, their metadata, and the components that hold them.

    Args:
        tensors: Edited values by component and name, ``unet.down_blocks...``.
        metadata: Method, arguments, concepts, base model, fingerprints and versions.
        path: The file that it was read from; None if it was not.
    """

    def __init__(
        self, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any], path: Path | None = None
    ) -> None:
        super().__init__(tensors, metadata, path)
        self.pipeline: Any = None
        #: The strength after `remove`; in a pipeline it is that of the records.
        self._strength = 1.0
        #: The edits beneath it that `apply` applied with it, the lowest first.
        self._beneath: list[Edit] = []

    def __repr__(self) -> str:
        return f"Edit({self.title}, {len(self.tensors)} tensors)"

    def apply(self, pipeline: Any, *, transfer: bool = False) -> Self:
        """Write the edit into a pipeline; one that holds it, at any strength, is left as it is.

        An edit that was trained on a model with other edits needs these: they are applied first
        where their files are found.

        Args:
            pipeline: A diffusers pipeline, or anything with the same component names.
            transfer: Accept components of equal shapes and other weights than those of the base
                model; the metadata lists them as ``transferred``.

        Raises:
            ErasureError: If the pipeline lacks a component or a base edit, has another one, holds
                another edit in it, or stores its weights where an edit would have no effect.
        """
        beneath = [] if transfer else self.apply_base_edits(pipeline)
        try:
            transferred = install_edit(self, pipeline, transfer)
        except ErasureError:
            _remove(beneath)
            raise
        self.metadata["transferred"] = transferred
        if beneath or pipeline is not self.pipeline:  # a second call applies none
            self._beneath = beneath
        self.pipeline = pipeline
        self._strength = 1.0
        return self

    def apply_base_edits(self, pipeline: Any) -> list["Edit"]:
        """Apply the edits that this one is based on and a pipeline lacks.

        Args:
            pipeline: As for `apply`.

        Returns:
            What was applied, the lowest first.

        Raises:
            ErasureError: If one is not found, or the pipeline is another model.
        """
        if not self.base_edits or holds_edit(self, pipeline):
            return []
        missing = base_edits.missing_base_edits(self, pipeline)
        strengths = {entry["fingerprint"]: entry["strength"] for entry in missing}
        applied: list[Edit] = []
        try:
            for file in base_edits.find_base_edits(missing, self.path, self.title):
                edit = load_edit(file).apply(pipeline)
                edit.strength = strengths[edit.fingerprint]
                applied.append(edit)
            if base_edits.missing_base_edits(self, pipeline):
                beneath = base_edits.titles(self.base_edits)
                raise ErasureError(
                    f"{self.title} needs its base model, with {beneath} and no other"
                    " edit; found another model beneath, or further edits. Apply it to its base"
                    " model."
                )
        except ErasureError:
            _remove(applied)
            raise
        return applied

    @property
    def strength(self) -> float:
        """Factor of the edit's difference: 0 for the original, 1 for the edit, up to 1000."""
        return next((r["strength"] for r in self._records().values()), self._strength)

    @strength.setter
    def strength(self, value: float) -> None:
        if value is None:
            raise ErasureError("An edit needs a number as strength; found None.")
        # Before a record has it: far beyond, weights overflow, and could not be written any more.
        require("An edit", at_least=0, at_most=1000, strength=value)
        places = [place for place in self._places() if place[1]["strength"] != value]
        for place in places:
            stack.require_changeable(*place)
        for component, record in places:
            stack.set_strength(component, record, float(value))

    def remove(self) -> None:
        """Undo the edit, and those beneath it that were applied with it.

        The pipeline has its former weights and no adapter of the edit. Edits can be removed in any
        order: what was applied on top stays, as a difference from what is left beneath.

        Raises:
            ErasureError: If the edit is in no pipeline, or the former weights would have no effect
                there; then none is changed.
        """
        places = self._places()
        for place in places:
            stack.require_changeable(*place)
        for component, record in places:
            self._strength = record["strength"]
            stack.remove_edit(component, record)
        pipeline, self.pipeline = self.pipeline, None
        beneath, self._beneath = self._beneath, []
        modules = [value for value in vars(pipeline).values() if isinstance(value, nn.Module)]
        if not any(map(adapters_of, modules)):
            vars(pipeline).pop("save_pretrained", None)
        _remove(beneath)

    def is_last(self) -> bool:
        """Whether no other edit was applied on top of it."""
        places = self._places()
        return all(stack.applied_edits(part.module)[-1] is record for part, record in places)

    def report(self) -> str:
        """Text with method, concepts, base, and the change of each component."""
        return describe_edit(self, self._records())

    def export(self, path: str | Path, format: str = "lora", **options: Any) -> Export:
        """Write the edit, at its strength, in the form that another tool loads.

        Args:
            path: The new file, or the new folder for ``diffusers`` and ``component``.
            format: One of `export_formats`.
            options: Further arguments of `ExportRequest`, as of `export_edit`.

        Raises:
            ErasureError: If the edit is in no pipeline, or the format or an option cannot be used.
        """
        with constructing(ExportRequest, self.export):
            request = ExportRequest(Path(path), format, **options)
        held = HeldEdit(self, self.pipeline, self.changes(), self.strength)
        return write_export(request, held)

    def changes(self) -> dict[str, Change]:
        """Parameters without and with the edit, whatever is on top, by component and name.

        Raises:
            ErasureError: If the edit is in no pipeline, or its former weights are unknown.
        """
        return {
            f"{component.name}.{name}": change
            for component, record in self._places()
            for name, change in stack.changes_by(component.module, record).items()
        }

    def _records(self) -> dict[str, stack.AppliedEdit]:
        return edit_records(self, self.pipeline)

    def _places(self) -> list[tuple[EditedComponent, stack.AppliedEdit]]:
        return edit_places(self, self.pipeline)


def _remove(edits: list[Edit]) -> None:
    """Remove edits, the last one first."""
    for edit in reversed(edits):
        edit.remove()


def load_edit(path: str | Path) -> Edit:
    """An edit from its file or its run folder, in no pipeline yet.

    Args:
        path: An ``edit.safetensors``, or the run folder that holds it.

    Raises:
        ErasureError: If the file is missing, is cut short, or is no edit.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from erasure_lightning import erase, load_edit
        >>> from erasure_lightning.backbones.tiny import TinyBackbone
        >>> edit = erase(TinyBackbone().to_pipeline(), "cat", method="UCE", progress_bar=False)
        >>> with TemporaryDirectory() as folder:
        ...     load_edit(edit.save(f"{folder}/no-cat.safetensors"))
        Edit(UCE of cat, 8 tensors)
    """
    edit = read_edit(base_edits.locate_edit(path))
    return Edit(edit.tensors, edit.metadata, edit.path)


def apply_edit(edit: Edit | str | Path, pipeline: Any, *, transfer: bool = False) -> Edit:
    """Apply an edit to a pipeline of its base model, or to another with the same component.

    An edit of a text encoder fits every pipeline with the same text encoder; it erases where the
    denoiser reads the layers that the edit was trained for (Stable Diffusion XL reads others than
    1.x). An edit that the pipeline holds already is not applied again. Base edits whose files are
    found are applied first, and removed with it. `compose` adds edits of one component, each of
    which is an edit of the original.

    Args:
        edit: An edit, its file, or the run folder that holds it.
        pipeline: A diffusers pipeline, or anything with the same component names.
        transfer: Accept components of equal shapes and other weights than those of the base model;
            ``edit.metadata["transferred"]`` lists them.

    Returns:
        The edit, whose `Edit.strength` can be changed and which `Edit.remove` undoes.

    Raises:
        ErasureError: If the file cannot be read, or the pipeline lacks a component, has another
            one, holds another edit in it, or stores its weights where an edit would have no effect.

    Example:
        >>> from erasure_lightning import apply_edit, erase
        >>> from erasure_lightning.backbones.tiny import TinyBackbone
        >>> edit = erase(TinyBackbone().to_pipeline(), "cat", method="UCE", progress_bar=False)
        >>> apply_edit(edit, TinyBackbone().to_pipeline()).strength
        1.0
    """
    return (edit if isinstance(edit, Edit) else load_edit(edit)).apply(pipeline, transfer=transfer)
