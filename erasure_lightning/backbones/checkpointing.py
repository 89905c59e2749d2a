"""Gradient checkpointing that replays the hooks of the forward pass."""

from typing import Any, TypeVar, cast

from torch import nn
from torch.utils.checkpoint import checkpoint

_M = TypeVar("_M", bound=nn.Module)


def run_checkpointed(block: nn.Module, *inputs: Any) -> Any:
    """Output of a block, of which only the inputs are stored; the backward computes it again."""
    return checkpoint(snapshot(block), *inputs, use_reentrant=False)


def snapshot(module: _M) -> _M:
    """A module with the same parameters and buffers and a copy of the current hooks and settings.

    Methods add hooks and processors for one forward (adapters of a batch's concepts, recorded
    attention, a token without gradient). The backward comes after their removal, and would compute
    something else without them.
    """
    result = object.__new__(type(module))  # `copy` fails for classes of sharded modules
    result.__dict__.update(vars(module))
    result._modules = {
        name: child if child is None else snapshot(child) for name, child in module._modules.items()
    }
    for name, value in vars(module).items():
        if name.endswith(("_hooks", "_hooks_with_kwargs", "_hooks_always_called")):
            result.__dict__[name] = value.copy()
        elif isinstance(value, tuple) and any(isinstance(item, nn.Module) for item in value):
            result.__dict__[name] = tuple(
                snapshot(item) for item in value
            )  # no registered children
    return result


def checkpoint_blocks(denoiser: nn.Module, text_encoders: nn.ModuleList) -> None:
    """Checkpoints the blocks of a diffusers denoiser and of transformers' text encoders."""
    denoiser.enable_gradient_checkpointing(run_checkpointed)  # type: ignore[operator]
    for tower in text_encoders:
        cast(Any, tower).model.gradient_checkpointing_enable({"use_reentrant": False})
        for layer in tower.modules():
            # transformers checkpoints a layer in training mode alone; its children, such as
            # dropout, stay in evaluation mode.
            if getattr(layer, "gradient_checkpointing", None) is True:
                layer.training = True
