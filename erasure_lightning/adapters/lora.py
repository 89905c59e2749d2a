"""Low-rank adapters ``W + B A`` (Hu et al. 2021, arXiv 2106.09685), through peft."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from erasure_lightning.adapters.base import Plan
from erasure_lightning.errors import ErasureError


def add_lora(root: nn.Module, plan: Plan) -> None:
    """Wrap layers; their own weights move to ``base_layer``.

    ``lora_alpha`` equals the rank, so that the product is added as it is.

    Args:
        root: The model.
        plan: Its settings are the ``rank``.
    """
    from peft import LoraConfig, inject_adapter_in_model

    rank = plan.settings["rank"]
    # peft matches names by their ends, which would also find a longer name that ends alike.
    pattern = "|".join(name.replace(".", r"\.") for name in plan.layers)
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=f"({pattern})")
    add = getattr(root, "add_adapter", None)  # diffusers' models keep account of their adapters
    add(config) if add else inject_adapter_in_model(config, root)
    root.requires_grad_(False)


@torch.no_grad()
def merge_lora(root: nn.Module) -> None:
    """Add low-rank products to the layers' own weights, and take the adapters out."""
    for layer in lora_layers(root).values():
        layer.merge()
    remove_lora(root)


def merged(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An edit's weights and low-rank factors as weights alone, ``W + B A``, by their plain names.

    Raises:
        ErasureError: If factors have no weights to be added to.
    """
    found = {name: value for name, value in values.items() if ".lora_" not in name}
    for name, down in values.items():
        layer, _, rest = name.partition(".lora_A.")
        if not rest:
            continue
        if (weight := found.get(f"{layer}.weight")) is None:
            raise ErasureError(
                f"A low-rank edit needs the weights beneath its adapters; found none of {layer}."
                " Its method's `editable` must name both, as LoraErasure's does, or merge them"
                " when training ends."
            )
        up = values[f"{layer}.lora_B.{rest}"]
        product = up.float().flatten(1) @ down.float().flatten(1)
        found[f"{layer}.weight"] = weight + product.view_as(weight).to(weight)
    return found


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
