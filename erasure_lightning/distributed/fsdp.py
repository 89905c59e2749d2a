"""Sharding of the edited model and its frozen original over ranks, with FSDP2.

Student and original share all modules that the edit does not change (`Backbone.frozen_copy`). FSDP2
gathers the weights of a *unit* before its forward and frees them after it, in either model, so a
shared unit serves both. A transformer block is one unit; one that is edited has two in each model:
all that both share, and the layers of its own. These are no module with a forward: the block's
forward gathers them (`_JointUnit`). Each unit is an FSDP root of its own, since a root registers
its descendants and these have two ancestors; a root cannot be a list of modules (torch 2.13), and
the inputs of a list's first module would not wait for the gradients of the others.

Not sharded: frozen text encoders (the denoiser is the large part), the autoencoder, tables of
embeddings (their weights are read without a forward), frozen weights below `MIN_UNIT`, and
adapters, whose gradients are averaged after each backward.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from erasure_lightning.distributed.collectives import rank

#: Smallest number of frozen weights that is worth gathering.
MIN_UNIT = 2**12

#: Largest number of frozen weights that is gathered at once, of anything but a block.
MAX_UNIT = 2**26

#: Attribute of a block with its joint units.
_UNITS = "joint_units"


class _JointUnit(nn.Module):
    """Modules whose weights are gathered together, by the blocks that hold them.

    Args:
        parts: The modules, none of which contains another.
        blocks: Each block before whose forward they are gathered, and after which they are freed.
        mesh: All ranks.
    """

    def __init__(
        self, parts: Sequence[nn.Module], blocks: Sequence[nn.Module], mesh: DeviceMesh
    ) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        _unit(self, mesh)
        for block in blocks:
            for hook in self._forward_pre_hooks.values():
                block.register_forward_pre_hook(cast(Any, hook), prepend=True, with_kwargs=True)
            for hook in self._forward_hooks.values():
                block.register_forward_hook(cast(Any, hook))
            # A list: registered children would appear twice among the model's weights.
            vars(block).setdefault(_UNITS, []).append(self)
        _await_gradients(self)


def find_blocks(model: nn.Module) -> set[int]:
    """Ids of a model's blocks: of what diffusers and transformers split no further, the innermost.

    Args:
        model: A denoiser, or a container of text encoders.
    """
    classes = {
        name for part in model.modules() for name in getattr(part, "_no_split_modules", None) or ()
    }
    blocks = [part for part in model.modules() if type(part).__name__ in classes]
    outer = {
        id(block)
        for block in blocks
        if any(type(part).__name__ in classes for part in [*block.modules()][1:])
    }
    return {id(block) for block in blocks if not _holds_embedding(block)} - outer


def shard_weights(
    module: nn.Module,
    counterparts: Sequence[nn.Module],
    mesh: DeviceMesh,
    trained: Mapping[str, Tensor],
) -> None:
    """Shards a model's weights over ranks, by block.

    Args:
        module: A part of the trained model.
        counterparts: The same part of every model that shares modules with it.
        mesh: All ranks, one-dimensional.
        trained: The weights that an optimizer updates, by any names; their
            counterparts are sharded too.
    """
    blocks = find_blocks(module)
    _visit(module, counterparts, mesh, set(map(id, trained.values())), blocks)


def _visit(
    module: nn.Module,
    counterparts: Sequence[nn.Module],
    mesh: DeviceMesh,
    trained: set[int],
    blocks: set[int],
) -> None:
    if id(module) in blocks and any(other is not module for other in counterparts):
        _shard_edited(module, counterparts, mesh, trained)
    elif all(other is module for other in counterparts):
        _shard_frozen(module, mesh, blocks)
    elif _has_trained(module, trained):
        for each in (module, *counterparts):
            _unit(each, mesh)
    else:
        for child, others in _common_children(module, counterparts):
            _visit(child, others, mesh, trained, blocks)


def _shard_edited(
    block: nn.Module, counterparts: Sequence[nn.Module], mesh: DeviceMesh, trained: set[int]
) -> None:
    """Shards a block that the models do not share: what they share of it, and each one's own."""
    shared: list[nn.Module] = []
    own: list[Sequence[nn.Module]] = []
    _sort_layers(block, counterparts, trained, shared, own)
    if sum(p.numel() for part in shared for p in part.parameters()) >= MIN_UNIT:
        _JointUnit(shared, (block, *counterparts), mesh)
    if own:
        for each, layers in zip((block, *counterparts), zip(*own, strict=True), strict=True):
            _JointUnit(layers, [each], mesh)


def _sort_layers(
    module: nn.Module,
    counterparts: Sequence[nn.Module],
    trained: set[int],
    shared: list[nn.Module],
    own: list[Sequence[nn.Module]],
) -> None:
    """Collects what models share of a module, and the trained layers with their counterparts."""
    if all(other is module for other in counterparts):
        shared.append(module)
    elif _has_trained(module, trained):
        own.append((module, *counterparts))
    else:
        for child, others in _common_children(module, counterparts):
            _sort_layers(child, others, trained, shared, own)


def _common_children(
    module: nn.Module, counterparts: Sequence[nn.Module]
) -> Iterator[tuple[nn.Module, list[nn.Module]]]:
    """Children with their counterparts; an adapter's have none, and are not sharded."""
    for name, child in module.named_children():
        if all(name in other._modules for other in counterparts):
            yield child, [other.get_submodule(name) for other in counterparts]


def _has_trained(module: nn.Module, trained: set[int]) -> bool:
    return any(id(parameter) in trained for parameter in module._parameters.values())


def _holds_embedding(module: nn.Module) -> bool:
    return any(isinstance(part, nn.Embedding) for part in module.modules())


def _shard_frozen(module: nn.Module, mesh: DeviceMesh, blocks: set[int]) -> None:
    """Shards a frozen module in units that are a block, or of at most `MAX_UNIT` weights."""
    size = sum(parameter.numel() for parameter in module.parameters())
    if size < MIN_UNIT or isinstance(module, nn.Embedding):
        return
    has_forward = type(module).forward is not nn.Module.forward  # containers have none
    is_leaf = next(module.children(), None) is None
    is_small = size <= MAX_UNIT and not _holds_embedding(module)
    if has_forward and (is_leaf or is_small or id(module) in blocks):
        _unit(module, mesh)
        _await_gradients(module)
    else:
        for child in module.children():
            _shard_frozen(child, mesh, blocks)


def _unit(module: nn.Module, mesh: DeviceMesh) -> None:
    fully_shard(module, mesh=mesh, reshard_after_forward=True)


def _await_gradients(unit: nn.Module) -> None:
    """Gathers a unit's weights in the backward also where a loss reads states within it.

    FSDP2 does so for the gradients of the unit's outputs alone.
    """
    state = cast(Any, fully_shard.state(unit))  # type: ignore[attr-defined]

    def await_gradient(layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        return state._register_pre_backward_hook(output)

    for layer in unit.modules():
        if layer is not unit and layer._parameters:
            layer.register_forward_hook(await_gradient)


def joint_units(module: nn.Module) -> list[nn.Module]:
    """What blocks of a sharded model gather, which none of them has as a child."""
    return [unit for part in module.modules() for unit in vars(part).get(_UNITS, ())]


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
