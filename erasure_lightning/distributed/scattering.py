"""Sending the first rank's weights to all ranks of a sharded model.

Weights are sent many at once: one by one, most of the time would be that of the messages. No
device holds more than `_BUCKET` numbers beside its shards, or one weight that is larger.
"""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, distributed, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from erasure_lightning.distributed.fsdp import joint_units

#: Largest number of weights that are sent at once, of several.
_BUCKET = 2**24


@torch.no_grad()
def scatter_weights(module: nn.Module, full: Mapping[str, Tensor], device: torch.device) -> None:
    """Sends every rank its shards of rank 0's weights, and moves the model to its device.

    Args:
        module: A sharded model; on ranks other than 0 some weights are on the meta device.
        full: The full weights and buffers by name, on rank 0.
        device: This rank's device.
    """
    joint = joint_units(module)
    for part in (*module.modules(), *joint):
        if isinstance(part, FSDPModule) and any(p.is_meta for p in part.parameters()):
            part.to_empty(device=device)
    _materialize(module, device)
    module.to(device)
    for unit in joint:
        unit.to(device)  # FSDP2 looks for replaced weights when its own module is moved
    weights = dict([*module.named_parameters(), *module.named_buffers()])
    sharded = {name: weight for name, weight in weights.items() if isinstance(weight, DTensor)}
    for names in _buckets(sharded):
        _scatter({name: sharded[name] for name in names}, full, device)
    whole = {name: weight for name, weight in weights.items() if name not in sharded}
    for names in _buckets(whole):
        _broadcast([whole[name].detach() for name in names])


def _buckets(weights: Mapping[str, Tensor]) -> Iterator[list[str]]:
    """Names of weights of one dtype that are sent at once."""
    buckets: dict[torch.dtype, list[str]] = {}
    sizes: dict[torch.dtype, int] = {}
    for name, weight in weights.items():
        dtype = weight.dtype
        size = weight.numel()
        if dtype in buckets and sizes[dtype] + size > _BUCKET:
            yield buckets.pop(dtype)
        sizes[dtype] = size + (sizes[dtype] if dtype in buckets else 0)
        buckets.setdefault(dtype, []).append(name)
    yield from buckets.values()


def _scatter(
    weights: Mapping[str, DTensor], full: Mapping[str, Tensor], device: torch.device
) -> None:
    """Sends every rank its shards of some weights of one dtype, one after the other."""
    like = next(iter(weights.values()))
    ranks = like.device_mesh.size()
    # Rows are split as by `torch.chunk`: the last shards are shorter, or empty.
    sizes = [-(-len(w) // ranks) * (w.numel() // len(w)) for w in weights.values()]
    received = torch.empty(sum(sizes), dtype=like.dtype, device=device)
    sent = received.new_zeros(ranks if full else 0, sum(sizes))
    for name, columns in zip(weights, torch.split(sent, sizes, dim=1), strict=True):
        for row, shard in zip(columns, full[name].chunk(ranks) if full else (), strict=False):
            row[: shard.numel()] = shard.flatten()
    distributed.scatter(received, [*sent], group=like.device_mesh.get_group())
    for weight, part in zip(weights.values(), torch.split(received, sizes), strict=True):
        local = weight.to_local()
        local.copy_(part[: local.numel()].view_as(local))


def _broadcast(weights: Sequence[Tensor]) -> None:
    """Sends every rank rank 0's values of weights of one dtype."""
    if len(weights) == 1:  # it may be large
        distributed.broadcast(weights[0], 0)
        return
    packed = torch.cat([weight.flatten() for weight in weights])
    distributed.broadcast(packed, 0)
    sizes = [weight.numel() for weight in weights]
    for weight, part in zip(weights, torch.split(packed, sizes), strict=True):
        weight.copy_(part.view_as(weight))


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
