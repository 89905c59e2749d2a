"""Locates a pipeline: a world, a diffusers folder, a Hub repository, a single-file checkpoint."""

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from erasure_lightning.backbones.families import FAMILIES, Family
from erasure_lightning.concepts.worlds import World, installed_world, worlds
from erasure_lightning.errors import ErasureError
from erasure_lightning.files.words import did_you_mean

_INDEX = "model_index.json"

_CHECKPOINT = ".safetensors"

#: Endings of checkpoints that are never read, and why.
_REFUSED = dict.fromkeys((".ckpt", ".pt", ".pth", ".bin"), "a pickle, which can run code")
_REFUSED[".gguf"] = "quantized weights, which cannot be edited"


#: Ids of the Hub's rules (``huggingface_hub.utils.validate_repo_id``), which raises for others.
_HUB_ID = re.compile(
    r"(?!.*(?:--|\.\.))\w[\w.-]*(?<![.-])/(?=.{1,96}$)\w[\w.-]*(?<![.-])(?<!\.git)", re.ASCII
)


@dataclass(frozen=True)
class PipelineSource:
    """A pipeline's files on this machine.

    Args:
        name: The user's name for it.
        root: Folder of ``model_index.json``.
        world: The world, if it is one.
        repository: The repository, if it is one of the Hub, of which only the files that are read
            are downloaded.
        revision: Branch, tag or commit of the repository; its main branch by default.
        checkpoint: A single-file checkpoint, whose weights take the place of the folder's.
    """

    name: str
    root: Path
    world: World | None = None
    repository: str = ""
    revision: str | None = None
    checkpoint: Path | None = None

    def folder(self, component: str) -> Path:
        """Folder of a component (``unet``, ``tokenizer_2``)."""
        return self.world.component(component) if self.world else self.root / component

    def settings(self, component: str) -> dict[str, Any]:
        """Settings that take the place of those in a component's config."""
        return self.world.component_settings(component) if self.world else {}

    def index(self) -> dict[str, Any]:
        """Content of ``model_index.json``.

        Raises:
            ErasureError: If the folder has none, or it cannot be read.
        """
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
        name: A world's name, a folder or its ``model_index.json``, a Hub id (``owner/model``, or
            ``owner/model@revision``), or a checkpoint in one file. The configs and tokenizers of
            the latter are in what follows an ``@`` (``FILE.safetensors@FOLDER``, or a world,
            or a Hub id), or else beside it, or in the Hub's cache.

    Raises:
        ErasureError: If there is none, or it is in a format that is not read.
    """
    file, at, config = _split_checkpoint(name)
    path = Path(os.path.expanduser(file))
    if at or (path.suffix == _CHECKPOINT and path.is_file()):
        return _single_file(name, path, config)
    return _locate_folder(name)


def _split_checkpoint(name: str) -> tuple[str, str, str]:
    """A checkpoint's file, an ``@``, and where its configs are; the latter two may be empty."""
    file, at, config = name.partition(f"{_CHECKPOINT}@")
    return (file + _CHECKPOINT, "@", config) if at else (name, "", "")


def _single_file(name: str, file: Path, config: str) -> PipelineSource:
    if not file.is_file():
        raise ErasureError(f"The backbone {name!r} was not found: there is no file {file}.")
    source = _locate_folder(config) if config else PipelineSource(name, _config_folder(file))
    return replace(source, name=name, checkpoint=file)


def _config_folder(file: Path) -> Path:
    """Folder of a checkpoint's configs: beside it, or its repository's in the Hub's cache.

    Raises:
        ErasureError: If there is none.
    """
    for folder in (file.with_suffix(""), file.parent):
        if (folder / _INDEX).is_file():
            return folder
    from erasure_lightning.backbones.single_file import original_repository

    title, repository = original_repository(file)
    if cached := cached_folder(repository):
        return cached
    raise ErasureError(
        f"The backbone {str(file)!r} holds weights alone; its configs and tokenizers, those of"
        f" {title}, are neither beside it nor in the Hub's cache. Name them: {file}@FOLDER, a"
        f" folder as diffusers writes it, or {file}@{repository}, from which they are downloaded."
    )


def _locate_folder(name: str) -> PipelineSource:
    if world := installed_world(name):
        return PipelineSource(name, world.pipeline, world)
    path = Path(os.path.expanduser(name))
    if name and path.is_dir():
        return PipelineSource(name, path)
    if path.name == _INDEX and path.is_file():
        return PipelineSource(name, path.parent)
    for file in (name, name.partition("@")[0]):
        _refuse_format(name, file)
    repository, _, revision = name.partition("@")
    if path.exists() or path.suffix in (_CHECKPOINT, *_REFUSED) or not is_hub_id(repository):
        kind = "no installed world, no folder, and no Hub id (owner/model)"
        kind = "a file" if path.is_file() else kind
        hint = did_you_mean(name, worlds())
        raise ErasureError(f"The backbone {name!r} was not found: it is {kind}.{hint}")
    source = PipelineSource(name, Path(), repository=repository, revision=revision or None)
    return replace(source, root=download_files(source, [_INDEX]))


def _refuse_format(name: str, file: str) -> None:
    """Raise if a file is a checkpoint that is never read.

    Raises:
        ErasureError: With the command that converts it.
    """
    path = Path(os.path.expanduser(file))
    if path.suffix in _REFUSED and path.is_file():
        raise ErasureError(
            f"The backbone {name!r} needs weights as safetensors; found {_REFUSED[path.suffix]}."
            " Convert it once where you trust it:"
            f" StableDiffusionPipeline.from_single_file({file!r}).save_pretrained(folder), and name"
            " that folder."
        )


def is_hub_id(name: str) -> bool:
    """Whether a text has the form of a repository on the Hub, ``owner/name``."""
    return _HUB_ID.fullmatch(name) is not None


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


def repository_files(source: PipelineSource) -> list[str]:
    """Paths of a Hub repository's files, or of the cached ones if the Hub is out of reach."""
    from huggingface_hub import HfApi

    try:
        return HfApi().list_repo_files(source.repository, revision=source.revision)
    except Exception:  # offline, gated, down: errors of three libraries
        return [str(p.relative_to(source.root)) for p in source.root.rglob("*") if p.is_file()]


def download_files(source: PipelineSource, patterns: Sequence[str]) -> Path:
    """Downloads files of a Hub repository into the cache, and returns its folder there.

    Args:
        source: The repository.
        patterns: Patterns of paths, relative to its root.

    Raises:
        ErasureError: If the repository cannot be read, and is not in the cache.
    """
    from huggingface_hub import snapshot_download

    name = source.repository
    revision = source.revision
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(patterns)))
    except Exception as error:  # as above
        if cached := cached_folder(name, revision):
            return cached
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        title = f"{name}@{revision}" if revision else name
        reason = first.removeprefix("Got: ")  # the hub's client begins so without a network
        raise ErasureError(f"The Hub id {title!r} could not be read: {reason}") from error


def cached_folder(repository: str, revision: str | None = None) -> Path | None:
    """Folder of a Hub repository in the cache of this machine, if its index is there."""
    from huggingface_hub import try_to_load_from_cache

    index = try_to_load_from_cache(repository, _INDEX, revision=revision)
    return Path(index).parent if isinstance(index, str) else None
