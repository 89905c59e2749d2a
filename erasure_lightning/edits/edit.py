"""Edit files: the edited values with metadata."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from erasure_lightning.edits.format import EDIT_FORMAT, current_name, read_metadata
from erasure_lightning.errors import ErasureError
from erasure_lightning.files.words import shell_word
from erasure_lightning.files.writing import EDIT_FILE, json_text, write_atomically


def write_edit(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Writes an edit.

    Args:
        path: The file; replaced atomically.
        tensors: Edited values by `Backbone.component_name`, ``unet.down_blocks...``.
        metadata: Method, concepts, backbone and more, as JSON values.
    """
    # A single entry: safetensors writes several in arbitrary order, and equal edits are to be equal
    # files.
    text = json_text({"format": EDIT_FORMAT, **metadata}, str(path))
    values = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_atomically(path, save(values, metadata={"erasure": text}))


def read_edit(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Edited values by name, and the metadata, both in the current layout.

    Raises:
        ErasureError: If the file is missing, no safetensors file, truncated, no edit, or of a later
            layout.
    """
    with _opened(path) as file:
        tensors = {current_name(name): file.get_tensor(name) for name in [*file.keys()]}
        return tensors, read_metadata(path, file.metadata() or {})


def read_edit_metadata(path: Path) -> dict[str, Any]:
    """An edit's metadata in the current layout; its tensors are not read.

    Raises:
        ErasureError: As for `read_edit`.
    """
    with _opened(path) as file:
        return read_metadata(path, file.metadata() or {})


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A safetensors file.

    Raises:
        ErasureError: If it is missing or cannot be read.
    """
    if path.name == EDIT_FILE and path.parent.is_dir() and not path.exists():
        raise ErasureError(
            f"No edit at {path}: a run has one once it has finished. `erasure fit --ckpt_path"
            f" {shell_word(path.parent)}` resumes a stopped run."
        )
    if not path.is_file():
        raise ErasureError(f"No edit at {path}: the file does not exist.")
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise ErasureError(
            f"{path} cannot be read as safetensors ({error}). It may be cut short, or a pickle,"
            " which is not supported."
        ) from error


def edit_title(metadata: Mapping[str, Any]) -> str:
    """Method and concepts of an edit, ``UCE of guitar``."""
    names = [concept["name"] for concept in metadata.get("concepts", [])]
    listed = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return f"{metadata.get('method', '').rpartition('.')[2]} of {listed}"
