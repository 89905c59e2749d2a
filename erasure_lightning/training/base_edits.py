"""Edits beneath the one that is trained: in the model before training, and in its metadata."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from erasure_lightning.adapters.base import adapters_of
from erasure_lightning.backbones.base import Backbone
from erasure_lightning.concepts.concept import Concept
from erasure_lightning.edits.applied import apply_edit
from erasure_lightning.edits.base_edits import locate_edit
from erasure_lightning.edits.edit import edit_title, read_edit_metadata
from erasure_lightning.edits.format import plain_name
from erasure_lightning.edits.stack import held_edits, unedited_values
from erasure_lightning.errors import ErasureError
from erasure_lightning.files.words import folded


def base_edit_files(base_edit: str | Sequence[str] | None) -> list[Path]:
    """Files of the edits that training starts from, the lowest first.

    Args:
        base_edit: A run's folder, its ``edit.safetensors``, or several of them.

    Raises:
        ErasureError: If there is no such file, it is no edit, is named twice, or is one of adapters
            that cannot be merged into weights.
    """
    several = [base_edit] if isinstance(base_edit, str) else list(base_edit or [])
    files = [locate_edit(path) for path in several]
    resolved = [file.resolve() for file in files]
    if twice := [file for i, file in enumerate(files) if resolved[i] in resolved[:i]]:
        raise ErasureError(f"base_edit needs each edit once; found {twice[0]} twice.")
    for file in files:
        metadata = read_edit_metadata(file)
        plans = metadata.get("adapters", {}).values()
        if any(plan["kind"] != "lora" for plan in plans):
            raise ErasureError(_unmergeable(f"{edit_title(metadata)} ({file})"))
    return files


def install_base_edits(backbone: Backbone, files: Sequence[Path], is_sharded: bool) -> None:
    """Apply edits to a model, one on another.

    Args:
        backbone: The model; its weights change.
        files: The edits, the lowest first.
        is_sharded: Whether the model will be sharded over ranks.

    Raises:
        ErasureError: If one is another model's, or the model has adapters or will be sharded.
    """
    if files:
        if is_sharded:
            raise ErasureError(
                "base_edit needs a model that is whole on each device; found a sharding strategy."
                " Use the strategy ddp, or one device."
            )
        pipeline = backbone.to_pipeline()
        for file in files:
            apply_edit(file, pipeline)
    if adapters := adapters_of(backbone):
        kinds = ", ".join(sorted({type(adapter).__name__ for adapter in adapters}))
        raise ErasureError(_unmergeable(f"{kinds} adapters"))


def edited_parts(backbone: Backbone, base_edits: Sequence[dict[str, Any]]) -> list[str]:
    """Prefixes in a backbone of the names of what edits change.

    Args:
        backbone: The model.
        base_edits: As `edits_beneath` returns them.
    """
    edited = {name for entry in base_edits for name in entry["components"]}
    return [f"{part}." for part, name in backbone.components.items() if name in edited]


def edits_beneath(backbone: Backbone) -> list[dict[str, Any]]:
    """The edits that a model holds, the oldest first, for the metadata of the next one."""
    parts = present_parts(backbone)
    return held_edits({backbone.components[part]: module for part, module in parts.items()})


def present_parts(backbone: Backbone) -> dict[str, nn.Module]:
    """Parts of a model by name, without text encoders that it lacks (Stable Diffusion 3's T5)."""
    modules = dict(backbone.named_modules())
    return {part: modules[part] for part in backbone.components if part in modules}


@torch.no_grad()
def unedited_copy(backbone: Backbone) -> Backbone:
    """A model without the edits that another holds, which shares all that they left.

    Args:
        backbone: The model with its edits.
    """
    values: dict[str, Tensor] = {}
    for part, module in present_parts(backbone).items():
        unedited = unedited_values(module)
        named = ((name, unedited.get(plain_name(name))) for name, _ in module.named_parameters())
        values |= {f"{part}.{name}": value for name, value in named if value is not None}
    original = backbone.frozen_copy(values)
    for name, value in values.items():
        original.get_parameter(name).copy_(value)
    return original


def earlier_concepts(
    base_edits: Sequence[dict[str, Any]], concepts: Sequence[Concept]
) -> list[Concept]:
    """Concepts that edits beneath erased, without those that are erased once more.

    Args:
        base_edits: As `edits_beneath` returns them.
        concepts: The concepts of the edit on top.
    """
    seen = {folded(concept.name) for concept in concepts}
    earlier = []
    for concept in (Concept(**fields) for entry in base_edits for fields in entry["concepts"]):
        if folded(concept.name) not in seen:
            seen.add(folded(concept.name))
            earlier.append(concept)
    return earlier


def check_base_edits(metadata: dict[str, Any], base_edits: Sequence[dict[str, Any]]) -> None:
    """Check that an edit is based on the edits that a model holds.

    Args:
        metadata: Metadata of the edit.
        base_edits: As `edits_beneath` returns them.

    Raises:
        ErasureError: If it is based on others.
    """
    required = metadata.get("base_edits", [])
    keys = ("fingerprint", "strength")
    ours, theirs = ([[entry[k] for k in keys] for entry in one] for one in (base_edits, required))
    if ours != theirs:
        there, here = (_listed(entries) for entries in (required, base_edits))
        raise ErasureError(
            f"The checkpoint is based on {there}; the model has {here}. Give the runs of the former"
            " as base_edit, lowest first."
        )


def _listed(entries: Sequence[dict[str, Any]]) -> str:
    texts = [f"{entry['edit']} ({entry['fingerprint']})" for entry in entries]
    return ", ".join(texts) or "no edit"


def _unmergeable(edit: str) -> str:
    return (
        f"An edit to start from needs to be weights; found {edit}, which act by prompt or image"
        " and cannot be merged. Erase all concepts in one fit, or start from the model without it."
    )
