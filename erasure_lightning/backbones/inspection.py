"""Checks a pipeline's files before weights are read: classes, configs, tokenizers, shapes."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from erasure_lightning.backbones.compatibility import require_channels, require_tokens
from erasure_lightning.backbones.families import Family
from erasure_lightning.backbones.sources import (
    PipelineSource,
    fetch_files,
    read_json,
    repository_files,
)
from erasure_lightning.backbones.weight_files import (
    WEIGHT_STEMS,
    StoredWeights,
    find_weights,
    preferred_variant,
    require_fit,
)
from erasure_lightning.errors import ErasureError

#: Model types of a text encoder's config: the text half of CLIP, or the whole.
_TEXT_CONFIGS = ("clip_text_model", "clip")


@dataclass(frozen=True)
class ComponentFiles:
    """A component with weights.

    Args:
        title: Its name in messages.
        folder: Its folder.
        model: An instance built from its config, on the meta device.
        stored: Its weight files; None if they are not read, and not on this machine.
    """

    title: str
    folder: Path
    model: Any
    stored: StoredWeights | None


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


@contextmanager
def wrap_errors(title: str) -> Iterator[None]:
    """Turns any error of the libraries into an `ErasureError` of one line with ``title``."""
    try:
        yield
    except ErasureError:
        raise
    except Exception as error:  # the libraries document no error classes
        first = next(iter(str(error).strip().splitlines()), "no reason was given")
        raise ErasureError(
            f"The {title} could not be loaded: {type(error).__name__}: {first}"
        ) from error


def inspect_pipeline(
    source: PipelineSource, family: Family, index: dict[str, Any], read: Collection[str]
) -> InspectedPipeline:
    """Checks every file of a pipeline but the values of weights.

    Args:
        source: Where the pipeline is.
        family: The pipeline's family.
        index: Content of its ``model_index.json``.
        read: Components whose weights will be read. In a folder, the weight files of the others are
            checked too.

    Raises:
        ErasureError: At the first file that is missing, broken, or does not fit the rest.
    """
    import diffusers

    classes = {name: _class(source, index, name, *family.models[name]) for name in family.models}
    samplers = _sampler_class(source, index)
    if source.hub:
        _fetch(source, family, read)
    models = {name: _empty(source, name, cls) for name, cls in classes.items()}
    tokenizers = {name: _tokenizer(source, index, name) for name in family.tokenizers}
    others = {**tokenizers, "scheduler": _sampler(source, samplers)}
    for name, tower in family.tokenizers.items():
        require_tokens(f"{name} of {source.name}", tokenizers[name], tower, models[tower].config)
    towers = [models[tower].config for tower in family.tokenizers.values()]
    require_channels(source.name, models["unet"].config, models["vae"].config, towers)
    components = {}
    for name, model in models.items():
        title = f"{name} of {source.name}"
        folder = source.folder(name)
        stored = None
        if name in read or not source.hub:
            stored = find_weights(folder, family.models[name][0])
            with wrap_errors(title):
                require_fit(title, model, stored)
        components[name] = ComponentFiles(title, folder, model, stored)
    return InspectedPipeline(family, getattr(diffusers, index["_class_name"]), components, others)


def _fetch(source: PipelineSource, family: Family, read: Collection[str]) -> None:
    """Downloads a Hub repository's configs, tokenizers, and weights in the preferred variant."""
    folders = [*family.models, *family.tokenizers, "scheduler"]
    patterns = [f"{folder}/*.{ending}" for folder in folders for ending in ("json", "txt")]
    files = repository_files(source) if read else []
    for name in read:
        own = [file.removeprefix(f"{name}/") for file in files if file.startswith(f"{name}/")]
        if best := preferred_variant(own, WEIGHT_STEMS[family.models[name][0]]):
            patterns += [f"{name}/{file}" for file in best[1]]
    fetch_files(source, patterns)


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
    if actual != (library, cls):
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
    if kind not in (None, cls.__name__, *(_TEXT_CONFIGS if text else ())):
        raise ErasureError(
            f"{folder}/config.json needs to describe a {cls.__name__}; found {kind}."
        )
    if config.get("quantization_config"):
        raise ErasureError(
            f"The {name} of {source.name} needs plain weights; found quantized ones. Give the"
            " original."
        )
    with wrap_errors(f"{name} of {source.name}"), torch.device("meta"):
        return cls(cls.config_class.from_pretrained(folder)) if text else cls.from_config(config)


def _tokenizer(source: PipelineSource, index: dict[str, Any], name: str) -> Any:
    import transformers

    library, cls = _library_and_class(source, index, name)
    if library != "transformers" or cls not in ("CLIPTokenizer", "CLIPTokenizerFast"):
        raise ErasureError(
            f"The {name} of {source.name} needs the class transformers.CLIPTokenizer; found"
            f" {library}.{cls}."
        )
    folder = source.folder(name)
    if not (folder / "tokenizer.json").is_file():
        for file in ("vocab.json", "merges.txt"):
            if not (folder / file).is_file():
                raise ErasureError(
                    f"The {name} of {source.name} needs tokenizer.json, or vocab.json and"
                    f" merges.txt, in {folder}; found no {file}. Download it again."
                )
    with wrap_errors(f"{name} of {source.name}"):
        return transformers.CLIPTokenizer.from_pretrained(folder)


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
        sampler = cls.from_config(config)
    prediction = sampler.config.get("prediction_type")
    if not hasattr(sampler, "alphas_cumprod"):
        raise ErasureError(
            f"The scheduler of {source.name} needs a noise schedule (alphas_cumprod); found"
            f" {cls.__name__}, which has none. Name the one that the model was trained with, such"
            " as DDIMScheduler."
        )
    if prediction not in ("epsilon", "v_prediction"):
        raise ErasureError(
            f"{source.name} needs a scheduler that predicts epsilon or v_prediction; found"
            f" {prediction!r}."
        )
    return sampler
