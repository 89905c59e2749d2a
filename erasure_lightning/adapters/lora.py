"""Low-rank adapters ``W + B A`` (Hu et al. 2021, arXiv 2106.09685), through peft."""

from typing import Any

import torch
from torch import nn

from erasure_lightning.adapters.base import Plan


def add_lora(root: nn.Module, plan: Plan) -> None:
    """Wrap layers; their own weights move to ``base_layer``.

    ``lora_alpha`` equals the rank, so that the product is added as it is.

    Args:
        root: The model.
        plan: Its settings are the ``rank`` and, optionally, ``names``: one set of adapters each.
    """
    from peft import LoraConfig, inject_adapter_in_model

    rank, names = plan.settings["rank"], plan.settings.get("names", ["default"])
    # peft matches names by their ends, which would also find a longer name that ends alike.
    pattern = "|".join(name.replace(".", r"\.") for name in plan.layers)
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=f"({pattern})")
    add = getattr(root, "add_adapter", None)  # diffusers' models keep account of their adapters
    for name in names:
        add(config, name) if add else inject_adapter_in_model(config, root, adapter_name=name)
    root.requires_grad_(False)


@torch.no_grad()
def merge_lora(root: nn.Module) -> None:
    """Add low-rank products to the layers' own weights, and take the adapters out."""
    for layer in lora_layers(root).values():
        layer.merge()
    remove_lora(root)


def remove_lora(root: nn.Module) -> None:
    """Take low-rank adapters out and leave the layers as they are beneath."""
    for name, layer in lora_layers(root).items():
        parent, _, child = name.rpartition(".")
        setattr(root.get_submodule(parent), child, layer.get_base_layer())
    if hasattr(root, "peft_config"):  # else the next adapter of this name would be refused
        del root.peft_config


def lora_layers(root: nn.Module) -> dict[str, Any]:
    """The layers that peft has wrapped, by name."""
    from peft.tuners.lora import LoraLayer

    return {name: module for name, module in root.named_modules() if isinstance(module, LoraLayer)}
