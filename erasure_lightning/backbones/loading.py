"""Loads a `Backbone` from a world, a diffusers folder, a Hub id or a single-file checkpoint."""

from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from torch._subclasses.fake_tensor import unset_fake_temporarily

from erasure_lightning.backbones.base import Backbone
from erasure_lightning.backbones.full_size import full_size_model
from erasure_lightning.backbones.inspection import ComponentFiles, inspect_pipeline
from erasure_lightning.backbones.single_file import read_single_file
from erasure_lightning.backbones.sources import family_of, locate_pipeline
from erasure_lightning.errors import ErasureError, wrap_errors
from erasure_lightning.files.quiet_libraries import quiet_libraries

#: Components whose weights are read.
WeightsToRead = Literal["all", "text encoders", "none"]


def load_backbone(
    name: str, dtype: torch.dtype = torch.float32, weights: WeightsToRead = "all"
) -> Backbone:
    """Loads a text-to-image model.

    Args:
        name: A world's name (``emoji-world``), a folder as diffusers writes it, a Hub id
            (``owner/model``, ``owner/model@revision``), or a checkpoint in one file, with the
            place of its configs (``FILE.safetensors@FOLDER``). Only a Hub id goes to the network.
        dtype: Precision of all weights, whatever they are stored in.
        weights: Which are read: ``all``; ``text encoders``, theirs and the autoencoder's, while the
            denoiser stays on the meta device until another rank sends its weights; or ``none``, for
            shapes alone.

    Raises:
        ErasureError: If there is no such model, or a file of it is missing, broken, of another
            kind, or does not fit.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from erasure_lightning import load_backbone
        >>> from erasure_lightning.backbones.tiny import TinyBackbone
        >>> with TemporaryDirectory() as folder:
        ...     TinyBackbone().save(folder)
        ...     backbone = load_backbone(folder)
        >>> backbone.encode(["a cat"]).tokens.shape
        torch.Size([1, 16, 32])
    """
    if weights == "none" and (known := full_size_model(name.partition("@")[0])):
        return known  # shapes alone need neither files nor the network
    source = locate_pipeline(name)
    index = source.index()
    family = family_of(source, index)
    backbone = family.load_class()
    denoiser = backbone.components["denoiser"]
    unread = {"all": {}, "text encoders": {denoiser}, "none": family.models}[weights]
    read = [part for part in family.models if part not in unread]
    with quiet_libraries():
        # Under a plan's fake tensors, too: the inspection compares shapes on the meta device.
        with unset_fake_temporarily():
            inspected = inspect_pipeline(source, family, backbone, index, read)
        parts = {
            part: _empty(component, dtype, weights)
            if part in unread
            else _read(component, dtype, source.checkpoint)
            for part, component in inspected.components.items()
        }
        settings = {key: index[key] for key in family.settings if key in index}
        # The constructor repairs configs of 2022 (clip_sample, steps_offset, sample_size) as stock.
        with wrap_errors(f"backbone {name!r}"):
            pipeline = inspected.pipeline(**parts, **inspected.others, **family.options, **settings)
    loaded = backbone.from_pipeline(name, pipeline, source.world)
    return loaded.requires_grad_(False)


def _read(component: ComponentFiles, dtype: torch.dtype, checkpoint: Path | None) -> Any:
    """A component with its weights, which must be finite."""
    cls = type(component.model)
    with wrap_errors(component.title):
        if checkpoint and component.tensors:
            model = read_single_file(
                cls, checkpoint, component.tensors, component.folder, component.settings, dtype
            )
        else:
            assert component.stored is not None
            model = cls.from_pretrained(
                component.folder,
                dtype=dtype,
                variant=component.stored.variant,
                use_safetensors=True,
                low_cpu_mem_usage=True,
                **component.settings,
            )
    _require_finite(component.title, model)
    return model


def _empty(component: ComponentFiles, dtype: torch.dtype, weights: WeightsToRead) -> Any:
    """A component without values: on the meta device, or for ``none`` on the caller's device."""
    if weights == "text encoders":
        return component.model.to(dtype).eval()
    cls = type(component.model)
    config = component.model.config
    return (cls(config) if hasattr(cls, "config_class") else cls.from_config(config)).eval()


def _require_finite(title: str, model: nn.Module) -> None:
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not tensor.sum(dtype=torch.float32).isfinite():
            raise ErasureError(
                f"The {title} needs finite weights; found NaN or infinity in {name}. Its training"
                " diverged, or the file is damaged: give another one."
            )
