"""The base model of an edit, and how its run drew images, by the edit's metadata."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from erasure_lightning.backbones.base import Backbone
from erasure_lightning.backbones.families import FAMILIES
from erasure_lightning.backbones.loading import load_backbone
from erasure_lightning.backbones.lora_files import fuse_loras
from erasure_lightning.edits.edit import edit_title
from erasure_lightning.edits.format import required_entry
from erasure_lightning.errors import ErasureError


def load_base_model(metadata: Mapping[str, Any], place: str | None = None) -> Backbone:
    """The base model of an edit, without any edit, with the LoRAs that were fused first.

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
            f"{edit_title(metadata)} needs its base model; found no folder and no Hub id"
            f" of it, only its class {name}. In Python pass it as pipeline=pipeline; commands take"
            " --backbone FOLDER."
        )
    backbone = load_backbone(name)
    fuse_loras(backbone, metadata.get("arguments", {}).get("loras") or ())
    return backbone


def run_sampling(metadata: Mapping[str, Any], backbone: Backbone) -> tuple[int, float]:
    """Sampling steps and guidance scale of an edit's run, else `Backbone.default_sampling`.

    Args:
        metadata: The edit's metadata, with the run's config where it was made by a command.
        backbone: The edit's base model.
    """
    config = yaml.safe_load(metadata.get("config", ""))
    data = (config.get("data") if isinstance(config, dict) else None) or {}
    steps, guidance = backbone.default_sampling
    own = data.get("guidance")
    return data.get("steps") or steps, guidance if own is None else own
