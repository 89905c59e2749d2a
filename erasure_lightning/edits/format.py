"""The layout of an edit file and its predecessor: tensor names and metadata. Without torch."""

import json
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from erasure_lightning.errors import ErasureError
from erasure_lightning.files.earlier_names import renamed_metadata

#: Version of the layout. 2: tensors and adapters go by the pipeline's components (``unet``), each
#: with fingerprints. 1: they go by the parts of a Stable Diffusion 1.x or 2.x backbone.
EDIT_FORMAT = 2

#: Parts of layout 1 -> components of the pipeline.
_PARTS = {"denoiser": "unet", "text_encoders.0": "text_encoder"}

#: Entries of the metadata and their types, of those that an edit has.
_TYPES = {
    "method": str,
    "concepts": list,
    "backbone": str,
    "arguments": dict,
    "fingerprints": dict,
    "adapters": dict,
}

#: Segments of names that torch.compile and peft add.
_WRAPPERS = ("_orig_mod", "base_layer")


def plain_name(name: str) -> str:
    """A parameter's name without the wrappers of torch.compile and peft."""
    return ".".join(segment for segment in name.split(".") if segment not in _WRAPPERS)


def current_name(name: str) -> str:
    """A tensor's name in the current layout, from either layout."""
    part = next((part for part in _PARTS if name.startswith(f"{part}.")), None)
    return name if part is None else plain_name(_PARTS[part] + name.removeprefix(part))


def read_metadata(path: Path, header: Mapping[str, str]) -> dict[str, Any]:
    """An edit's metadata in the current layout.

    Args:
        path: The file, for messages.
        header: Its safetensors metadata.

    Raises:
        ErasureError: If it is no edit, of a later layout, or an entry has another type.
    """
    try:
        metadata: dict[str, Any] = dict(json.loads(header["erasure"]))
        layout = int(metadata.get("format", 1))
    except (KeyError, TypeError, ValueError) as error:
        raise ErasureError(
            f"{path} needs the metadata of an edit (method, concepts, backbone); found none."
        ) from error
    if layout > EDIT_FORMAT:
        raise ErasureError(
            f"{path} needs a later version of erasure-lightning: found layout {layout}, known are 1"
            f" to {EDIT_FORMAT}."
        )
    _check_types(path, metadata)
    if "adapters" in metadata:
        metadata["adapters"] = {
            _PARTS.get(part, part): plan for part, plan in metadata["adapters"].items()
        }
    return renamed_metadata(metadata) | {"format": EDIT_FORMAT}


def plain_values(value: Any) -> Any:
    """Dataclasses and other objects as values that YAML can represent."""
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, Mapping):
        return {str(k): plain_values(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain_values(v) for v in value]
    return value if isinstance(value, str | int | float | bool | None) else repr(value)


def required_entry(metadata: Mapping[str, Any], name: str) -> Any:
    """An entry of an edit's metadata, which another package's edit may lack.

    Args:
        metadata: Metadata of the edit.
        name: Name of the entry.

    Raises:
        ErasureError: If it is not there.
    """
    if name not in metadata:
        raise ErasureError(
            f"The edit's metadata needs {name} here; found none. Apply the edit in Python to a"
            " pipeline of your own: apply_edit(file, pipeline)."
        )
    return metadata[name]


def base_title(metadata: Mapping[str, Any]) -> str:
    """The base model's name, with the LoRAs that were fused into it first; empty if unknown."""
    name = str(metadata.get("backbone") or "")
    loras = metadata.get("arguments", {}).get("loras")
    return f"{name} with {', '.join(map(str, loras))}" if loras else name


def _check_types(path: Path, metadata: Mapping[str, Any]) -> None:
    for name, kind in _TYPES.items():
        if name in metadata and not isinstance(metadata[name], kind):
            raise _damaged(path, name, metadata[name])
    for concept in metadata.get("concepts", []):
        if not isinstance(concept, dict) or not isinstance(concept.get("name"), str):
            raise _damaged(path, "concepts", concept)


def _damaged(path: Path, name: str, value: object) -> ErasureError:
    return ErasureError(
        f"{path} cannot be read: its metadata needs {name} as `erasure fit` writes them; found"
        f" {value!r}."
    )
