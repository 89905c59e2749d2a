"""The edit as a file: only what was changed, as safetensors, with what it was made from."""

import json
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from erasure_lightning.adapters.base import Plan
from erasure_lightning.adapters.kinds import install
from erasure_lightning.errors import ErasureError
from erasure_lightning.files import EDIT_FILE as EDIT_FILE  # part of what this module offers, as it always was
from erasure_lightning.files import json_text
from erasure_lightning.files import write_atomically as write_atomically

#: Version of the file's layout.
EDIT_FORMAT = 1

#: Where the parts of a `Backbone` live in a diffusers pipeline.
PIPELINE_PARTS = {
    "denoiser": ("unet", "transformer"),
    "text_encoders.0": ("text_encoder",),
    "text_encoders.1": ("text_encoder_2",),
    "text_encoders.2": ("text_encoder_3",),
}


def plain(value: Any) -> Any:
    """Dataclasses and objects as what YAML can say of them."""
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return value if isinstance(value, str | int | float | bool | None) else repr(value)


def write_edit(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Write an edit.

    Args:
        path: Where to; replaced atomically.
        tensors: Edited values by their names in the backbone.
        metadata: What it was made from; anything JSON holds.
    """
    # One entry, since safetensors writes several in an order of its own: equal edits are to be equal files.
    text = json_text({"format": EDIT_FORMAT, **metadata}, str(path))
    values = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_atomically(path, save(values, metadata={"erasure": text}))


def read_edit(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Edited values by name, and the metadata.

    Raises:
        ErasureError: If the file is missing, is no safetensors file, is cut short, or is no edit.
    """
    if not path.is_file():
        raise ErasureError(f"No edit at {path}: the file does not exist.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a mapping)
    except (SafetensorError, OSError) as error:
        raise ErasureError(
            f"{path} cannot be read as safetensors ({error}). It may be cut short, or a pickle, which is never read."
        ) from error
    if "erasure" not in metadata:
        raise ErasureError(f"{path} needs the metadata of an edit (method, concepts, backbone); found none.")
    return tensors, json.loads(metadata["erasure"])


def apply_edit(path: str | Path, pipeline: Any) -> dict[str, Any]:
    """Put an edit into a diffusers pipeline: the one it was trained on, or another that shares the edited part.

    A trained text encoder transfers to every pipeline with the same text encoder, whatever its UNet. Adapters that
    the edit holds apart are put in first.

    Args:
        path: An ``edit.safetensors`` or the run folder that holds it.
        pipeline: A diffusers pipeline, or anything with the same component names.

    Returns:
        The edit's metadata.

    Raises:
        ErasureError: If the pipeline lacks a part the edit changes, or its shapes differ.
    """
    path = Path(path)
    tensors, metadata = read_edit(path / EDIT_FILE if path.is_dir() else path)
    for part, components in PIPELINE_PARTS.items():
        module = next((m for c in components if (m := getattr(pipeline, c, None)) is not None), None)
        if module is not None and part in metadata.get("adapters", {}):
            install(module, Plan(**metadata["adapters"][part]))
        values = {n.removeprefix(f"{part}."): v for n, v in tensors.items() if n.startswith(f"{part}.")}
        if values:
            _copy_into(module, values, f"{type(pipeline).__name__}.{components[0]}")
    return metadata


@torch.no_grad()
def _copy_into(module: nn.Module | None, values: Mapping[str, Tensor], where: str) -> None:
    parameters = dict(module.named_parameters()) if module is not None else {}
    wrong = [n for n, v in values.items() if n not in parameters or parameters[n].shape != v.shape]
    if wrong:
        raise ErasureError(
            f"The edit needs {len(values)} parameters of {where}; found {len(wrong)} missing or of another shape, "
            f"{wrong[0]} first. It fits pipelines with the same part as the one it was made on."
        )
    for name, value in values.items():
        parameters[name].copy_(value)
