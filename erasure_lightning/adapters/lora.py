"""Low-rank adapters ``W + B A`` (Hu et al. 2021, arXiv 2106.09685), through peft."""

import copy
from collections.abc import Mapping
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from erasure_lightning.adapters.base import AdapterPlan
from erasure_lightning.errors import ErasureError

#: How the first factor ``A`` of an adapter begins: ``uniform`` within ``1 / sqrt(D)`` for ``D``
#: inputs, peft's default, or ``gaussian`` with a deviation of one over the rank.
LoraInit = Literal["uniform", "gaussian"]


def add_lora(root: nn.Module, plan: AdapterPlan) -> None:
    """Wraps layers with low-rank adapters; their own weights move to ``base_layer``.

    ``lora_alpha`` equals the rank, so that the product is added without a scale.

    Args:
        root: The model.
        plan: The layers, and the ``rank`` as setting.
    """
    from peft import LoraConfig, inject_adapter_in_model

    rank = plan.settings["rank"]
    # A list of names would also match longer names with the same ending.
    pattern = "|".join(name.replace(".", r"\.") for name in plan.layers)
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=f"({pattern})")
    if hasattr(root, "add_adapter"):  # models of diffusers keep a record of their adapters
        cast(Any, root).add_adapter(config)
    else:
        inject_adapter_in_model(config, root)
    root.requires_grad_(False)


def draw_gaussian(root: nn.Module, plan: AdapterPlan) -> None:
    """Draws the first factor of a plan's adapters anew, with a deviation of one over the rank.

    Args:
        root: The model, with the adapters.
        plan: The layers, and the ``rank`` as setting.
    """
    layers = lora_layers(root)
    for name in plan.layers:
        for down in layers[name].lora_A.values():
            nn.init.normal_(down.weight, std=1 / plan.settings["rank"])


@torch.no_grad()
def merge_lora(root: nn.Module) -> None:
    """Adds low-rank products to the layers' weights in float32, and removes the adapters."""
    unshare_base_layers(root)
    for layer in lora_layers(root).values():
        layer.merge()
    remove_lora(root)


def unshare_base_layers(root: nn.Module) -> None:
    """Gives wrapped layers weights of their own, in float32: the original shares those before."""
    for layer in lora_layers(root).values():
        own = copy.copy(layer.get_base_layer())
        own._parameters = own._parameters.copy()
        dtype = torch.promote_types(own.weight.dtype, torch.float32)
        own.weight = nn.Parameter(own.weight.detach().to(dtype, copy=True), requires_grad=False)
        layer.base_layer = own


def merged_weights(
    values: Mapping[str, Tensor], beneath: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The weights ``W + B A`` of an edit with low-rank factors, by the layers' own names.

    Args:
        values: Factors ``A``, ``(r, in)``, and ``B``, ``(out, r)``, by the names that peft gives
            them, and weights ``W``, ``(out, in)``, that the edit has itself.
        beneath: Weights of the model, alike, for factors without weights of the edit's own.

    Returns:
        The weights of adapted layers in float32, and all others as they are.

    Raises:
        ErasureError: If factors have no weights that they can be added to.
    """
    merged = {name: value for name, value in values.items() if ".lora_" not in name}
    for name, layer in _factored_layers(values):
        down = values[name]
        up = values[name.replace(".lora_A.", ".lora_B.")]
        product = up.float().flatten(1) @ down.float().flatten(1)
        key = f"{layer}.weight"
        weight = merged.get(key, beneath.get(key))
        if weight is None or weight.numel() != product.numel():
            actual = "none" if weight is None else f"one of shape {tuple(weight.shape)}"
            raise ErasureError(
                f"A low-rank edit needs the weights beneath its adapters; found {actual} at {key},"
                f" where a difference of shape {tuple(product.shape)} is to be added. Apply it to"
                " its base model."
            )
        # A model in half precision rounds the sum once, when it is written.
        whole = weight.detach().float()
        merged[key] = whole + product.view_as(whole).to(whole)
    return merged


def weights_to_merge(values: Mapping[str, Tensor]) -> set[str]:
    """Names of the weights beneath an edit's factors that the edit does not have itself."""
    return {f"{layer}.weight" for _, layer in _factored_layers(values)} - values.keys()


def _factored_layers(values: Mapping[str, Tensor]) -> list[tuple[str, str]]:
    """The names of the first factors, each with its layer's."""
    return [(name, name.partition(".lora_A.")[0]) for name in values if ".lora_A." in name]


def remove_lora(root: nn.Module) -> None:
    """Removes low-rank adapters without merging them."""
    for name, layer in lora_layers(root).items():
        parent, _, child = name.rpartition(".")
        setattr(root.get_submodule(parent), child, layer.get_base_layer())
    if hasattr(root, "peft_config"):  # else the next adapter of this name would be refused
        del root.peft_config
        vars(root).pop("_hf_peft_config_loaded", None)  # by which diffusers reads that record


def lora_layers(root: nn.Module) -> dict[str, Any]:
    """All layers that peft has wrapped, by name."""
    from peft.tuners.lora import LoraLayer

    return {name: module for name, module in root.named_modules() if isinstance(module, LoraLayer)}
