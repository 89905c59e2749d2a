"""The forms in which an edit leaves the package: ours, and those of other packages."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from enum import StrEnum
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from erasure_lightning.discovery import cause_of, package_of
from erasure_lightning.errors import ErasureError
from erasure_lightning.files.words import did_you_mean

if TYPE_CHECKING:  # commands list names without importing torch
    import torch

    from erasure_lightning.edits.changes import Change

#: Where packages announce a `PluginFormat` under its name. `registry` is in a layer above.
_GROUP = "erasure_lightning.formats"


class ExportFormat(StrEnum):
    """Names of export formats; docs/export.md says which tool reads which."""

    DIFFUSERS = "diffusers"
    """A whole pipeline folder, base and edit merged."""
    CHECKPOINT = "checkpoint"
    """The user's own single file with the edited tensors in it."""
    COMPONENT = "component"
    """A folder for each edited component."""
    LORA = "lora"
    """Low-rank factors with diffusers' keys."""
    KOHYA_LORA = "kohya-lora"
    """Low-rank factors with the keys of Kohya's scripts, for A1111, Forge and ComfyUI."""
    DIFF = "diff"
    """Full differences with the keys of ComfyUI's LoRA loader."""
    ADAPTERS = "adapters"
    """The adapters of an edit that acts by prompt or image, as `apply_edit` reads them."""

    @property
    def suffix(self) -> str:
        """How the name of its file ends; empty of a folder."""
        is_folder = self in (ExportFormat.DIFFUSERS, ExportFormat.COMPONENT)
        return "" if is_folder else ".safetensors"


class PluginFormat(ABC):
    """An export format of another package, an entry point in ``erasure_lightning.formats``.

    Args:
        name: The entry point's name, by which users choose it.
    """

    #: How the name of its file ends, ``.bin``; empty of a folder.
    suffix: ClassVar[str] = ".safetensors"

    def __init__(self, name: str) -> None:
        self.name = name

    def __str__(self) -> str:
        return self.name

    @abstractmethod
    def write(
        self,
        path: Path,
        changes: "Mapping[str, Change]",
        pipeline: Any,
        metadata: Mapping[str, Any],
        dtype: "torch.dtype",
    ) -> None:
        """Writes an edit of weights; those of gated adapters never come here.

        Args:
            path: A file that does not exist, or a folder; it gets its own name and place once this
                method returns.
            changes: Parameters before and after the edit, at its strength, by component and name.
            pipeline: The diffusers pipeline that holds the edit.
            metadata: The edit's metadata: method, concepts, backbone and more.
            dtype: Precision that the user chose, float32 by default.

        Raises:
            ErasureError: If the format cannot hold the edit.
        """


def export_formats() -> list[str]:
    """Names of all formats, ours first."""
    ours = [each.value for each in ExportFormat]
    return ours + sorted(entry_points(group=_GROUP).names - {*ours})


def find_format(name: str) -> ExportFormat | PluginFormat:
    """The format of a name; one of another package is imported here.

    Raises:
        ErasureError: If there is none of that name, several packages offer it, or it cannot be
            loaded.
    """
    if name in [*ExportFormat]:
        return ExportFormat(name)
    known = export_formats()
    if name not in known:
        raise ErasureError(
            f"The format needs to be one of {', '.join(known)}; found {name!r}."
            f"{did_you_mean(str(name), known)}"
        )
    return _plugin(name)


def _plugin(name: str) -> PluginFormat:
    entries = list(entry_points(group=_GROUP, name=name))
    if len(entries) > 1:
        packages = " and ".join(sorted(f"{package_of(e)} ({e.value})" for e in entries))
        raise ErasureError(f"The format {name!r} is claimed by {packages}. Uninstall one.")
    try:
        loaded = entries[0].load()
        if not (isinstance(loaded, type) and issubclass(loaded, PluginFormat)):
            raise TypeError(f"expected a subclass of PluginFormat, found {loaded!r}")
        return loaded(name)
    except (Exception, SystemExit) as error:  # a plugin's own code runs here, and may even exit
        raise ErasureError(
            f"The format {name} could not be loaded from {package_of(entries[0])}"
            f" ({entries[0].value}): {cause_of(error)}. Mend or uninstall that package."
        ) from error
