"""Checks a pipeline's files before weights are read: classes, configs, tokenizers, shapes."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from erasure_lightning.backbones.base import Backbone
from erasure_lightning.backbones.compatibility import require_tokens
from erasure_lightning.backbones.families import Family
from erasure_lightning.backbones.single_file import (
    component_tensors,
    converted_tensors,
    require_prediction,
)
from erasure_lightning.backbones.sources import (
    PipelineSource,
    download_files,
    read_json,
    repository_files,
)
from erasure_lightning.backbones.weight_files import (
    WEIGHT_STEMS,
    StoredWeights,
    find_weights,
    preferred_variant,
    require_tensors,
)
from erasure_lightning.errors import ErasureError, wrap_errors
from erasure_lightning.files.safetensors_file import meta_tensors, tensor_shapes


class _TowerKind(NamedTuple):
    """What a text encoder's folders hold.

    Args:
        types: Model types of its config.
        tokenizer: Class of its tokenizer.
        files: Files of the tokenizer where there is no ``tokenizer.json``.
    """

    types: Sequence[str]
    tokenizer: str
    files: Sequence[str]


#: By the text encoder's class. A config describes the text half of CLIP, or the whole.
_CLIP = _TowerKind(("clip_text_model", "clip"), "CLIPTokenizer", ("vocab.json", "merges.txt"))
_TOWER_KINDS = {
    "CLIPTextModel": _CLIP,
    "CLIPTextModelWithProjection": _CLIP,
    "T5EncoderModel": _TowerKind(("t5",), "T5Tokenizer", ("spiece.model",)),
}

#: Class as files from before a renaming in diffusers name it -> the class that reads them.
_RENAMED = {"Transformer2DModel": "PixArtTransformer2DModel"}


_Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class ComponentFiles:
    """A component with weights.

    Args:
        title: Its name in messages.
        folder: Its folder.
        settings: Settings that take the place of those in its config.
        model: An instance built from both, on the meta device.
        stored: Its weight files; None if they are not read, or in a checkpoint.
        tensors: Names of its tensors in a single-file checkpoint, where they are in one.
    """

    title: str
    folder: Path
    settings: Mapping[str, Any]
    model: Any
    stored: StoredWeights | None = None
    tensors: Sequence[str] = ()


@dataclass(frozen=True)
class InspectedPipeline:
    """A pipeline whose files fit together.

    Args:
        family: The pipeline's family.
        pipeline: The pipeline's class.
        components: Components with weights, by name.
        others: Tokenizers and the scheduler, by name.
    """

    family: Family
    pipeline: Any
    components: Mapping[str, ComponentFiles]
    others: Mapping[str, Any]


def inspect_pipeline(
    source: PipelineSource,
    family: Family,
    backbone: type[Backbone],
    index: dict[str, Any],
    read: Collection[str],
) -> InspectedPipeline:
    """Checks every file of a pipeline but the values of weights.

    Args:
        source: Where the pipeline is.
        family: The pipeline's family.
        backbone: Its backbone, which checks that the components fit together.
        index: Content of its ``model_index.json``.
        read: Components whose weights will be read. In a folder, the weight files of the others are
            checked too.

    Raises:
        ErasureError: At the first file that is missing, broken, or does not fit the rest.
    """
    import diffusers

    classes = {name: _class(source, index, name, *family.models[name]) for name in family.models}
    samplers = _sampler_class(source, index)
    shapes = tensor_shapes(source.checkpoint) if source.checkpoint else {}
    inside = _by_component(shapes, family)
    if source.repository:
        _fetch(source, family, [name for name in read if not inside[name]])
    models = {name: _empty(source, name, cls) for name, cls in classes.items()}
    tokenizers = {
        name: _tokenizer(source, index, name, _TOWER_KINDS[family.models[tower][1]])
        for name, tower in family.tokenizers.items()
    }
    others = {**tokenizers, "scheduler": _sampler(source, samplers)}
    for name, tower in family.tokenizers.items():
        require_tokens(f"{name} of {source.name}", tokenizers[name], tower, models[tower].config)
    require_prediction(source.name, shapes, others["scheduler"])
    configs = {name: model.config for name, model in models.items()}
    backbone.check_configs(source.name, configs, others["scheduler"])
    components = {
        name: _component(source, name, family.models[name][0], model, inside[name], name in read)
        for name, model in models.items()
    }
    return InspectedPipeline(family, getattr(diffusers, index["_class_name"]), components, others)


def _component(
    source: PipelineSource, name: str, library: str, model: Any, shapes: _Shapes, is_read: bool
) -> ComponentFiles:
    """A component with the files of its weights, which are checked against the model."""
    title = f"{name} of {source.name}"
    folder = source.folder(name)
    settings = source.settings(name)
    files = ComponentFiles(title, folder, settings, model, tensors=tuple(shapes))
    if shapes:
        with wrap_errors(title):
            empty, unused = converted_tensors(title, model, meta_tensors(shapes))
            require_tensors(title, model, empty, unused=unused)
    elif is_read or not source.repository:
        return _with_weights(source, files, library)
    return files


def _by_component(shapes: _Shapes, family: Family) -> dict[str, _Shapes]:
    """Shapes of each component's tensors in a single-file checkpoint."""
    return {
        name: {key: shapes[key] for key in component_tensors(shapes, name, cls)}
        for name, (_, cls) in family.models.items()
    }


def _with_weights(source: PipelineSource, files: ComponentFiles, library: str) -> ComponentFiles:
    """The component with the weight files of its folder."""
    try:
        stored = find_weights(files.folder, library)
    except ErasureError as error:
        if source.checkpoint is None:
            raise
        raise ErasureError(
            f"The {files.title} is not in {source.checkpoint.name}: {error} Or name with @ a"
            " folder or a Hub id that holds its weights."
        ) from error
    with wrap_errors(files.title):
        require_tensors(files.title, files.model, stored.empty_tensors(), stored.sharded)
    return replace(files, stored=stored)


def _fetch(source: PipelineSource, family: Family, read: Collection[str]) -> None:
    """Downloads a Hub repository's configs, tokenizers, and weights in the preferred variant."""
    folders = [*family.models, *family.tokenizers, "scheduler"]
    patterns = [f"{folder}/*.{ending}" for folder in folders for ending in ("json", "txt", "model")]
    files = repository_files(source) if read else []
    for name in read:
        own = [file.removeprefix(f"{name}/") for file in files if file.startswith(f"{name}/")]
        if best := preferred_variant(own, WEIGHT_STEMS[family.models[name][0]]):
            patterns += [f"{name}/{file}" for file in best[1]]
    download_files(source, patterns)


def _library_and_class(source: PipelineSource, index: dict[str, Any], name: str) -> tuple[str, str]:
    """Library and class that ``model_index.json`` names for a component."""
    match index.get(name):
        case [str(library), str(cls)]:
            return library, cls
        case value:
            raise ErasureError(
                f"The model_index.json of {source.name} needs a library and a class for its {name};"
                f" found {value}."
            )


def _class(source: PipelineSource, index: dict[str, Any], name: str, library: str, cls: str) -> Any:
    actual = _library_and_class(source, index, name)
    if actual != (library, cls) and _RENAMED.get(actual[1]) != cls:
        raise ErasureError(
            f"The {name} of {source.name} needs the class {library}.{cls};"
            f" found {'.'.join(actual)}."
        )
    import diffusers
    import transformers

    return getattr({"diffusers": diffusers, "transformers": transformers}[library], cls)


def _folder(source: PipelineSource, name: str, config: str) -> Path:
    """A component's folder, which holds its config."""
    folder = source.folder(name)
    if not folder.is_dir():
        raise ErasureError(
            f"The backbone {source.name!r} needs a folder {folder}; found none. Download it again."
        )
    if not (folder / config).is_file():
        raise ErasureError(
            f"The {name} of {source.name} needs {folder / config}; found none. Download it again."
        )
    return folder


def _empty(source: PipelineSource, name: str, cls: Any) -> Any:
    """A component built from its config on the meta device."""
    folder = _folder(source, name, "config.json")
    config = read_json(folder / "config.json")
    kind = config.get("_class_name", config.get("model_type"))
    text = hasattr(cls, "config_class")
    types = _TOWER_KINDS[cls.__name__].types if text else ()
    if kind not in (None, cls.__name__, *types) and _RENAMED.get(str(kind)) != cls.__name__:
        raise ErasureError(
            f"{folder}/config.json needs to describe a {cls.__name__}; found {kind}."
        )
    if config.get("quantization_config"):
        raise ErasureError(
            f"The {name} of {source.name} needs plain weights; found quantized ones. Give the"
            " original."
        )
    with wrap_errors(f"{name} of {source.name}"), torch.device("meta"):
        if text:
            return cls(cls.config_class.from_pretrained(folder))
        return cls.from_config(config | source.settings(name))


def _tokenizer(source: PipelineSource, index: dict[str, Any], name: str, kind: _TowerKind) -> Any:
    import transformers

    library, cls = _library_and_class(source, index, name)
    if library != "transformers" or cls not in (kind.tokenizer, f"{kind.tokenizer}Fast"):
        raise ErasureError(
            f"The {name} of {source.name} needs the class transformers.{kind.tokenizer}; found"
            f" {library}.{cls}."
        )
    folder = source.folder(name)
    missing = [file for file in kind.files if not (folder / file).is_file()]
    if missing and not (folder / "tokenizer.json").is_file():
        raise ErasureError(
            f"The {name} of {source.name} needs tokenizer.json, or {' and '.join(kind.files)}, in"
            f" {folder}; found no {missing[0]}. Download it again."
        )
    with wrap_errors(f"{name} of {source.name}"):
        return getattr(transformers, kind.tokenizer).from_pretrained(folder)


def _sampler_class(source: PipelineSource, index: dict[str, Any]) -> Any:
    import diffusers

    library, name = _library_and_class(source, index, "scheduler")
    cls = getattr(diffusers, name, None) if library == "diffusers" else None
    if not (isinstance(cls, type) and issubclass(cls, diffusers.SchedulerMixin)):
        raise ErasureError(
            f"The scheduler of {source.name} needs to be one of the installed diffusers; found"
            f" {library}.{name}."
        )
    return cls


def _sampler(source: PipelineSource, cls: Any) -> Any:
    folder = _folder(source, "scheduler", "scheduler_config.json")
    config = read_json(folder / "scheduler_config.json")
    with wrap_errors(f"scheduler of {source.name}"):
        return cls.from_config(config)
