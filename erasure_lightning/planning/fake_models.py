"""Replaces the models of a method by models of fake tensors."""

from typing import Any, cast

import torch
from torch._subclasses.fake_tensor import FakeTensor

from erasure_lightning.adapters.lora import lora_layers
from erasure_lightning.backbones.base import Backbone
from erasure_lightning.backbones.loading import load_backbone
from erasure_lightning.backbones.precision import arithmetic_dtype
from erasure_lightning.planning.memory_tracker import (
    MemoryTracker,
    as_parameter,
    shapes,
    without_values,
)
from erasure_lightning.training.base import ErasureModule


def make_fake(module: ErasureModule, memory: MemoryTracker) -> Backbone:
    """Replace a module's backbone by one of fake tensors, which is neither moved nor hashed.

    Args:
        module: The method, before its model is loaded.
        memory: The tracker that counts the model's weights.

    Returns:
        The backbone.
    """
    (source,) = module._source
    mode = shapes()
    if isinstance(source, str):
        with mode:
            source = load_backbone(source, weights="none")
    backbone = cast(Any, source)
    without_values(backbone, arithmetic_dtype(module.base_dtype), mode)
    backbone.rounded_fingerprints = lambda dtypes: ["" for _ in dtypes]
    backbone.fingerprints = lambda names: {}
    backbone.to = lambda *_: backbone
    backbone.offload_text = lambda: None  # what leaves is subtracted from the peaks
    cast(Any, module)._source = (backbone,)
    module.base_edit_files = []  # they change values, not shapes
    cast(Any, module)._apply = lambda *_, **__: module
    memory.hold([*backbone.parameters(), *backbone.buffers()])
    return cast(Backbone, backbone)


def make_adapters_fake(module: ErasureModule, memory: MemoryTracker) -> None:
    """Replace low-rank factors, which were made with values: their products are as large as layers.

    Args:
        module: The method, with its adapters.
        memory: The tracker, whose peak does not count factors twice.
    """
    peak = memory.peak
    for layer in lora_layers(module.backbone.denoiser).values():
        mode = layer.get_base_layer().weight.fake_mode
        for linear in (*layer.lora_A.values(), *layer.lora_B.values()):
            weight = linear.weight
            shape = torch.empty_like(weight, device="meta", requires_grad=weight.requires_grad)
            linear.weight = as_parameter(FakeTensor(mode, shape, torch.device("cpu")))
            del weight
    memory.peak = peak
