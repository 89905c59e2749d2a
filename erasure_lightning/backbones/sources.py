"""Locates a pipeline: a world, a folder as diffusers writes it, or a repository of the Hub."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from erasure_lightning.backbones.families import FAMILIES, Family
from erasure_lightning.concepts.worlds import World, find_world
from erasure_lightning.errors import ErasureError

_INDEX = "model_index.json"

#: Endings of checkpoints that hold a whole pipeline in one file.
_SINGLE = (".safetensors", ".ckpt", ".pt", ".pth", ".bin", ".gguf")


@dataclass(frozen=True)
class PipelineSource:
    """A pipeline's files on this machine.

    Args:
        name: The user's name for it.
        root: Folder of ``model_index.json``.
        world: The world, if it is one.
        hub: Whether it is a repository of the Hub, of which only the files that are read are
            downloaded.
    """

    name: str
    root: Path
    world: World | None = None
    hub: bool = False

    def folder(self, component: str) -> Path:
        """Folder of a component (``unet``, ``tokenizer_2``)."""
        return self.world.component(component) if self.world else self.root / component

    def settings(self, component: str) -> dict[str, Any]:
        """Settings that take the place of those in a component's config."""
        return self.world.component_settings(component) if self.world else {}

    def index(self) -> dict[str, Any]:
        """Content of ``model_index.json``."""
        if (self.root / _INDEX).exists():
            return read_json(self.root / _INDEX, encoding="utf-8-sig")
        near = [*self.root.glob(f"*/{_INDEX}"), *self.root.glob(f"snapshots/*/{_INDEX}")]
        near += [p for p in (self.root.resolve().parent / _INDEX,) if p.is_file()]
        hint = f"; did you mean {near[0].parent}?" if near else "."
        raise ErasureError(
            f"The folder {self.root} needs a {_INDEX} as diffusers writes it; found none{hint}"
        )


def locate_pipeline(name: str) -> PipelineSource:
    """Locates a pipeline; only a Hub id uses the network.

    Args:
        name: A world's name, a folder or its ``model_index.json``, or a Hub id (``owner/model``).

    Raises:
        ErasureError: If there is none, or it is a checkpoint in one file.
    """
    if world := find_world(name):
        return PipelineSource(name, world.pipeline, world)
    path = Path(os.path.expanduser(name))
    if name and path.is_dir():
        return PipelineSource(name, path)
    if path.name == _INDEX and path.is_file():
        return PipelineSource(name, path.parent)
    if path.suffix in _SINGLE and path.is_file():
        raise ErasureError(
            f"The backbone {name!r} is a checkpoint in one file; a folder as diffusers writes it is"
            " needed. Convert it once:"
            f" StableDiffusionPipeline.from_single_file({name!r}).save_pretrained(folder), and name"
            " that folder."
        )
    if path.exists() or path.suffix in _SINGLE or not _is_hub_id(name):
        kind = "no installed world, no folder, and no Hub id (owner/model)"
        kind = "a file" if path.is_file() else kind
        raise ErasureError(f"The backbone {name!r} was not found: it is {kind}.")
    return PipelineSource(name, _download(name, [_INDEX]), hub=True)


def _is_hub_id(name: str) -> bool:
    return name.count("/") == 1 and all(name.split("/")) and not name.startswith((".", "~"))


def family_of(source: PipelineSource, index: dict[str, Any]) -> Family:
    """The family of the pipeline class in ``model_index.json``, without what the pipeline lacks.

    Raises:
        ErasureError: If the class is not in `FAMILIES`.
    """
    name = index.get("_class_name")
    if isinstance(name, str) and name in FAMILIES:
        return FAMILIES[name].in_index(index)
    known = ", ".join(f"{key} ({family.title})" for key, family in FAMILIES.items())
    raise ErasureError(
        f"The backbone {source.name!r} needs a known pipeline class; found {name}. Known: {known}."
    )


def read_json(path: Path, encoding: str = "utf-8") -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        ErasureError: If it cannot be read or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding=encoding))
    except OSError as error:
        raise ErasureError(f"{path} cannot be read: {error.strerror}.") from error
    except ValueError as error:  # includes bytes that are not UTF-8
        raise ErasureError(f"{path} needs JSON in UTF-8; found an error: {error}.") from error
    if not isinstance(content, dict):
        raise ErasureError(f"{path} needs a JSON object; found {type(content).__name__}.")
    return content


def fetch_files(source: PipelineSource, files: Sequence[str]) -> None:
    """Downloads files of a Hub repository into the cache; patterns are relative to its root."""
    _download(source.name, files)


def repository_files(source: PipelineSource) -> list[str]:
    """Paths of a Hub repository's files, or of the cached ones if the Hub is out of reach."""
    from huggingface_hub import HfApi

    try:
        return HfApi().list_repo_files(source.name)
    except Exception:  # offline, gated, down: errors of three libraries
        return [str(p.relative_to(source.root)) for p in source.root.rglob("*") if p.is_file()]


def _download(name: str, patterns: Sequence[str]) -> Path:
    from huggingface_hub import snapshot_download, try_to_load_from_cache

    try:
        return Path(snapshot_download(name, allow_patterns=list(patterns)))
    except Exception as error:  # as above
        cached = try_to_load_from_cache(name, _INDEX)
        if isinstance(cached, str):
            return Path(cached).parent
        first = str(error).strip().splitlines()[0]
        raise ErasureError(f"The Hub id {name!r} could not be read: {first}") from error
