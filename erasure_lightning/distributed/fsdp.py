"""Sharding of the edited model and its frozen original over ranks, with FSDP2.

Student and original share all modules that the edit does not change (`Backbone.frozen_copy`). FSDP2
gathers the weights of a *unit* before its forward and frees them after it, in either model, so a
shared unit serves both. Blocks that hold both edited and shared layers are split further, down to
the layers. Each unit is an FSDP root of its own, since a root registers its descendants and these
have two ancestors.

Not sharded: frozen text encoders (the denoiser is the large part), the autoencoder, tables of
embeddings (their weights are read without a forward), frozen weights below `MIN_UNIT`, and
adapters, whose gradients are averaged after each backward.
"""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from erasure_lightning.distributed.collectives import rank

#: Smallest number of frozen weights that is worth gathering.
MIN_UNIT = 2**12

#: Largest number of frozen weights that is gathered at once.
MAX_UNIT = 2**26


def shard_weights(
    module: nn.Module, twins: Sequence[nn.Module], mesh: DeviceMesh, trained: Mapping[str, Tensor]
) -> None:
    """Shards a model's weights over ranks: trained ones by layer, frozen ones by block.

    Args:
        module: A part of the trained model.
        twins: The same part of every model that shares modules with it.
        mesh: All ranks, one-dimensional.
        trained: The weights that an optimizer updates, by any names; their twins are sharded too.
    """
    _visit(module, twins, mesh, set(map(id, trained.values())))


def _visit(
    module: nn.Module, twins: Sequence[nn.Module], mesh: DeviceMesh, trained: set[int]
) -> None:
    if all(twin is module for twin in twins):
        _shard_frozen(module, mesh)
    elif any(id(parameter) in trained for parameter in module._parameters.values()):
        for each in (module, *twins):
            _unit(each, mesh)
    else:  # children that an adapter added have no twin, and are not sharded
        for name, child in module.named_children():
            if all(name in twin._modules for twin in twins):
                _visit(child, [twin.get_submodule(name) for twin in twins], mesh, trained)


def _shard_frozen(module: nn.Module, mesh: DeviceMesh) -> None:
    """Shards a frozen module in units of at most `MAX_UNIT` weights."""
    size = sum(parameter.numel() for parameter in module.parameters())
    if size < MIN_UNIT or isinstance(module, nn.Embedding):
        return
    parts = list(module.modules())
    has_forward = type(module).forward is not nn.Module.forward  # containers have none
    has_embedding = any(isinstance(part, nn.Embedding) for part in parts)
    if has_forward and (len(parts) == 1 or (size <= MAX_UNIT and not has_embedding)):
        _unit(module, mesh)
    else:
        for child in module.children():
            _shard_frozen(child, mesh)


def _unit(module: nn.Module, mesh: DeviceMesh) -> None:
    fully_shard(module, mesh=mesh, reshard_after_forward=True)


@torch.no_grad()
def scatter_weights(module: nn.Module, full: Mapping[str, Tensor], device: torch.device) -> None:
    """Sends every rank its shards of rank 0's weights, and moves the model to its device.

    Args:
        module: A sharded model; on ranks other than 0 some weights are on the meta device.
        full: The full weights and buffers by name, on rank 0.
        device: This rank's device.
    """
    for unit in [part for part in module.modules() if isinstance(part, FSDPModule)]:
        if any(parameter.is_meta for parameter in cast(nn.Module, unit).parameters()):
            cast(nn.Module, unit).to_empty(device=device)
    _materialize(module, device)
    module.to(device)
    for name, weight in [*module.named_parameters(), *module.named_buffers()]:
        if isinstance(weight, DTensor):
            if name in full:
                value = full[name].to(device)
            else:
                value = torch.empty(weight.shape, dtype=weight.dtype, device=device)
            weight.copy_(distribute_tensor(value, weight.device_mesh, weight.placements))
        else:
            distributed.broadcast(weight.detach(), 0)


def _materialize(module: nn.Module, device: torch.device) -> None:
    """Allocates meta tensors; unlike `to_empty` it keeps shared tensors shared."""
    allocated: dict[Tensor, Tensor] = {}
    for part in module.modules():
        for tensors in (part._parameters, part._buffers):
            for name, value in tensors.items():
                if value is not None and value.is_meta:
                    new = torch.empty_like(value, device=device)
                    if isinstance(value, nn.Parameter):
                        new = nn.Parameter(new, value.requires_grad)
                    tensors[name] = allocated.setdefault(value, new)  # type: ignore[assignment]


def full_tensor(value: Tensor) -> Tensor:
    """The full value of a weight on the CPU; if it is sharded, every rank must call it."""
    return (value.full_tensor() if isinstance(value, DTensor) else value).detach().cpu()


@torch.no_grad()
def copy_into(weight: Tensor, value: Tensor) -> None:
    """Copies a value, sharded alike or full on every rank, into a weight, sharded or not."""
    if isinstance(weight, DTensor) and not isinstance(value, DTensor):
        value = _shard_like(weight, value)
    weight.copy_(value)


def _shard_like(weight: DTensor, value: Tensor) -> Tensor:
    """A full tensor sharded like a weight; every rank takes its own part."""
    local = value.to(weight.device_mesh.device_type)
    return distribute_tensor(local, weight.device_mesh, weight.placements, src_data_rank=None)


def full_optimizer_state(state: dict[str, Any]) -> dict[str, Any]:
    """An optimizer's unsharded state on rank 0 for saving; every rank must call it.

    Tensors are gathered one by one, so that no device holds several of them.
    """
    gathered: dict[Any, dict[str, Any]] = {}
    for number, values in state["state"].items():
        for key, value in values.items():
            full = full_tensor(value) if isinstance(value, Tensor) else value
            if rank() == 0:
                gathered.setdefault(number, {})[key] = full
    return {**state, "state": gathered}


def shard_optimizer_state(
    optimizer: torch.optim.Optimizer, state: dict[str, Any]
) -> dict[str, Any]:
    """An optimizer's full state, sharded like its parameters."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    sharded = {}
    for number, values in state["state"].items():
        weight = parameters[int(number)]
        sharded[number] = {
            key: _shard_like(weight, value) if _is_sharded_like(weight, value) else value
            for key, value in values.items()
        }
    return {**state, "state": sharded}


def _is_sharded_like(weight: Tensor, value: Any) -> bool:
    return isinstance(weight, DTensor) and isinstance(value, Tensor) and value.shape == weight.shape
