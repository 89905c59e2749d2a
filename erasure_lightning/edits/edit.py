"""Edit files: the edited values with metadata."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from erasure_lightning.edits.changes import components_of
from erasure_lightning.edits.fingerprints import hash_tensors
from erasure_lightning.edits.format import EDIT_FORMAT, current_name, read_metadata
from erasure_lightning.errors import ErasureError
from erasure_lightning.files.words import shell_word
from erasure_lightning.files.writing import EDIT_FILE, json_text, write_atomically


class StoredEdit:
    """An edit as its file has it.

    Args:
        tensors: Edited values by component and name, ``unet.down_blocks...``.
        metadata: Method, arguments, concepts, base model, fingerprints and versions, as JSON
            values.
        path: The file that it was read from; None if it was not.
    """

    def __init__(
        self, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any], path: Path | None = None
    ) -> None:
        self.tensors = dict(tensors)
        self.metadata = dict(metadata)
        self.path = path

    @property
    def title(self) -> str:
        """Method and concepts, ``UCE of guitar``."""
        return edit_title(self.metadata)

    @property
    def method(self) -> str:
        """Class name of the method that made it, such as ``UCE``."""
        return str(self.metadata.get("method", "")).rpartition(".")[2]

    @property
    def concepts(self) -> list[str]:
        """Names of the erased concepts; ``metadata["concepts"]`` has anchors and domains too."""
        return [concept["name"] for concept in self.metadata.get("concepts", [])]

    @property
    def components(self) -> list[str]:
        """Names of the pipeline's components that it changes, in order."""
        return components_of(self.tensors)

    @property
    def adapters(self) -> dict[str, dict[str, Any]]:
        """`AdapterPlan` of each component with adapters, as plain values."""
        return self.metadata.get("adapters") or {}

    @property
    def base_edits(self) -> list[dict[str, Any]]:
        """The edits that it is based on, the lowest first, as `held_edits` describes them."""
        return self.metadata.get("base_edits") or []

    @property
    def fingerprint(self) -> str:
        """A short hash of its tensors and rules, by which edits that are based on it name it."""
        own = hash_tensors({name: self.tensors[name] for name in sorted(self.tensors)})[0]
        rules = {name: plan for name, plan in self.adapters.items() if plan["kind"] != "lora"}
        if not rules:
            return own
        text = own + json.dumps(rules, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def values_of(self, component: str) -> dict[str, Tensor]:
        """Its values of a component, by their names there."""
        start = f"{component}."
        return {n.removeprefix(start): v for n, v in self.tensors.items() if n.startswith(start)}

    def save(self, path: str | Path) -> Path:
        """Write the edit, at strength 1, as a safetensors file with its metadata.

        Args:
            path: The file; it replaces an older one atomically.

        Returns:
            The file.

        Raises:
            ErasureError: If it cannot be written.
        """
        path = Path(path)
        # A single entry: safetensors writes several in arbitrary order, and equal edits are to be
        # equal files.
        text = json_text({"format": EDIT_FORMAT, **self.metadata}, str(path))
        values = {name: value.detach().cpu().contiguous() for name, value in self.tensors.items()}
        write_atomically(path, save(values, metadata={"erasure": text}))
        return path


def read_edit(path: Path) -> StoredEdit:
    """An edit from its file, in the current layout.

    Raises:
        ErasureError: If the file is missing, no safetensors file, truncated, no edit, or of a later
            layout.
    """
    with _opened(path) as file:
        tensors = {current_name(name): file.get_tensor(name) for name in [*file.keys()]}
        return StoredEdit(tensors, read_metadata(path, file.metadata() or {}), path)


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
