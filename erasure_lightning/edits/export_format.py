"""`ExportFormat`: the forms in which an edit leaves the package."""

from enum import StrEnum


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
    def is_folder(self) -> bool:
        """Whether it is a folder; the others are files that end in ``.safetensors``."""
        return self in (ExportFormat.DIFFUSERS, ExportFormat.COMPONENT)
