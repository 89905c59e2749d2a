"""The model that an edit was made on, by its name in the metadata."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from erasure_lightning.backbones.base import Backbone
from erasure_lightning.backbones.families import FAMILIES
from erasure_lightning.backbones.loading import load_backbone
from erasure_lightning.backbones.lora_files import fuse_loras
from erasure_lightning.edits.edit import edit_title
from erasure_lightning.edits.format import required_entry
from erasure_lightning.errors import ErasureError


def load_base_model(metadata: Mapping[str, Any], place: str | None = None) -> Backbone:
    """The model that an edit was made on, without any edit, with the LoRAs that were fused first.

    Args:
        metadata: The edit's metadata.
        place: Where the model is now, as `load_backbone` takes it; by default as the metadata
            name it.

    Raises:
        ErasureError: If the metadata name no model, or it or a LoRA is not found.
    """
    name = place or required_entry(metadata, "backbone")
    if name in FAMILIES and not Path(name).exists():  # a pipeline that was loaded from no folder
        raise ErasureError(
            f"{edit_title(metadata)} needs the model it was made on; found no folder and no Hub id"
            f" of it, only its class {name}. In Python pass it as pipeline=pipeline; commands take"
            " --backbone FOLDER."
        )
    backbone = load_backbone(name)
    fuse_loras(backbone, metadata.get("arguments", {}).get("loras") or ())
    return backbone
