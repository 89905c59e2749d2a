"""Weights split over ranks (FSDP2): no rank trains with a whole denoiser, and the frozen original
shares the splits.

Student and original share all modules that the edit does not reach (`Backbone.frozen_copy`). FSDP2
gathers the weights of a *unit* before it runs and lets go of them behind it, whoever runs it; so a
unit that lies in both trees serves both. That leaves out blocks that hold an edited layer beside
shared ones: those are split further, down to the layers. Each unit is a root of its own, since a
root remembers its descendants and these have two ancestors.

What stays whole on every rank: frozen text encoders (the denoiser is what is large), the
autoencoder, tables of embeddings (they are read without being run), frozen weights below `MIN_UNIT`,
and adapters, whose gradients are averaged behind each backward.
"""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from erasure_lightning.distributed.collectives import rank

#: Frozen weights in a unit: not worth gathering below, too much to gather at once above.
MIN_UNIT, MAX_UNIT = 2**12, 2**26


def shard_weights(
    module: nn.Module, twins: Sequence[nn.Module], mesh: DeviceMesh, trained: Mapping[str, Tensor]
) -> None:
    """Split a model's weights over the ranks of ``mesh``: what is trained layer by layer, what is
    frozen in blocks.

    Args:
        module: A part of the model in training.
        twins: The same part of every model that shares modules with it.
        mesh: One dimension, of all ranks.
        trained: The weights that an optimizer moves, by any names; their twins are split with them.
    """
    own = set(map(id, trained.values()))
    _visit(module, twins, mesh, own)


def _visit(
    mine: nn.Module, twins: Sequence[nn.Module], mesh: DeviceMesh, trained: set[int]
) -> None:
    if all(twin is mine for twin in twins):
        _frozen(mine, mesh)
    elif any(id(parameter) in trained for parameter in mine._parameters.values()):
        for each in (mine, *twins):
            _unit(each, mesh)
    else:  # what an adapter added has no twin, and stays as it is
        for name, child in mine.named_children():
            if all(name in twin._modules for twin in twins):
                _visit(child, [twin.get_submodule(name) for twin in twins], mesh, trained)


def _frozen(module: nn.Module, mesh: DeviceMesh) -> None:
    """Split a frozen module, in units as large as may be gathered at once."""
    size = sum(parameter.numel() for parameter in module.parameters())
    if size < MIN_UNIT or isinstance(module, nn.Embedding):
        return
    parts = list(module.modules())
    runs = (
        type(module).forward is not nn.Module.forward
    )  # lists of modules are never run themselves
    if runs and (
        len(parts) == 1
        or (size <= MAX_UNIT and not any(isinstance(part, nn.Embedding) for part in parts))
    ):
        _unit(module, mesh)
    else:
        for child in module.children():
            _frozen(child, mesh)


def _unit(module: nn.Module, mesh: DeviceMesh) -> None:
    fully_shard(module, mesh=mesh, reshard_after_forward=True)


@torch.no_grad()
def scatter_weights(module: nn.Module, full: Mapping[str, Tensor], device: torch.device) -> None:
    """Give every rank its part of weights that only rank 0 has, and move all to their device.

    Args:
        module: A model whose weights are split; elsewhere than on rank 0 some are on the meta
            device.
        full: The whole weights and buffers by name, on rank 0.
        device: This rank's.
    """
    for unit in [part for part in module.modules() if isinstance(part, FSDPModule)]:
        if any(parameter.is_meta for parameter in cast(nn.Module, unit).parameters()):
            cast(nn.Module, unit).to_empty(device=device)
    _make_room(module, device)
    module.to(device)
    for name, weight in [*module.named_parameters(), *module.named_buffers()]:
        if isinstance(weight, DTensor):
            value = (
                full[name].to(device)
                if name in full
                else torch.empty(weight.shape, dtype=weight.dtype, device=device)
            )
            weight.copy_(distribute_tensor(value, weight.device_mesh, weight.placements))
        else:
            distributed.broadcast(weight.detach(), 0)


def _make_room(module: nn.Module, device: torch.device) -> None:
    """Put empty weights where there are none; what models share they share still, which `to_empty`
    would end.
    """
    made: dict[Tensor, Tensor] = {}
    for part in module.modules():
        for held in (part._parameters, part._buffers):
            for name, value in held.items():
                if value is not None and value.is_meta:
                    room = torch.empty_like(value, device=device)
                    fresh = (
                        nn.Parameter(room, value.requires_grad)
                        if isinstance(value, nn.Parameter)
                        else room
                    )
                    held[name] = made.setdefault(value, fresh)  # type: ignore[assignment]


def full_tensor(value: Tensor) -> Tensor:
    """A weight on the CPU, as every rank can read it; of a split one every rank must ask."""
    return (value.full_tensor() if isinstance(value, DTensor) else value).detach().cpu()


@torch.no_grad()
def copy_into(weight: Tensor, value: Tensor) -> None:
    """Give a weight, split or whole, a value that every rank holds alike: split as it is, or whole."""
    if isinstance(weight, DTensor) and not isinstance(value, DTensor):
        value = _shard_like(weight, value)
    weight.copy_(value)


def _shard_like(weight: DTensor, value: Tensor) -> Tensor:
    """A whole tensor split as a weight is; every rank takes its own part of it."""
    here = value.to(weight.device_mesh.device_type)
    return distribute_tensor(here, weight.device_mesh, weight.placements, src_data_rank=None)


def full_optimizer_state(state: dict[str, Any]) -> dict[str, Any]:
    """An optimizer's state as a single process would have it, for rank 0 to save; every rank must
    ask.

    Tensor by tensor, so that no device holds more than one of them whole.
    """
    found: dict[Any, dict[str, Any]] = {}
    for number, values in state["state"].items():
        for key, value in values.items():
            full = full_tensor(value) if isinstance(value, Tensor) else value
            if rank() == 0:
                found.setdefault(number, {})[key] = full
    return {**state, "state": found}


def shard_optimizer_state(
    optimizer: torch.optim.Optimizer, state: dict[str, Any]
) -> dict[str, Any]:
    """A whole state of an optimizer, split as its parameters are."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    found = {}
    for number, values in state["state"].items():
        weight = parameters[int(number)]
        found[number] = {
            key: _shard_like(weight, v) if _alike(weight, v) else v for key, v in values.items()
        }
    return {**state, "state": found}


def _alike(weight: Tensor, value: Any) -> bool:
    return isinstance(weight, DTensor) and isinstance(value, Tensor) and value.shape == weight.shape
