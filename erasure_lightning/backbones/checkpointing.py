"""Gradient checkpointing that knows what stood around a block: the backward computes again what was
computed.
"""

from typing import Any, TypeVar, cast

from torch import nn
from torch.utils.checkpoint import checkpoint

_M = TypeVar("_M", bound=nn.Module)


def run_checkpointed(block: nn.Module, *inputs: Any) -> Any:
    """What a block says of its inputs; of all it computed only these are kept, and the backward
    computes it again.
    """
    return checkpoint(snapshot(block), *inputs, use_reentrant=False)


def snapshot(module: _M) -> _M:
    """The same parameters and buffers in a module that keeps the hooks and settings of today.

    Methods stand beside a block for the time of a forward (adapters of a batch's concepts,
    attention that is recorded, a token without slope). A backward comes when they have left, and
    would compute something else without them.
    """
    twin = object.__new__(
        type(module)
    )  # not `copy`: classes that split weights make their instances otherwise
    twin.__dict__.update(vars(module))
    twin._modules = {
        name: child if child is None else snapshot(child) for name, child in module._modules.items()
    }
    for name, value in vars(module).items():
        if name.endswith(("_hooks", "_hooks_with_kwargs", "_hooks_always_called")):
            twin.__dict__[name] = value.copy()
        elif isinstance(value, tuple) and any(
            isinstance(item, nn.Module) for item in value
        ):  # kept, but no part
            twin.__dict__[name] = tuple(snapshot(item) for item in value)
    return twin


def checkpoint_blocks(denoiser: nn.Module, text_encoders: nn.ModuleList) -> None:
    """Let blocks of a diffusers denoiser, and of transformers' text encoders, be checkpointed under
    gradient.
    """
    denoiser.enable_gradient_checkpointing(run_checkpointed)  # type: ignore[operator]
    for tower in text_encoders:
        cast(Any, tower).model.gradient_checkpointing_enable({"use_reentrant": False})
        for layer in tower.modules():
            # transformers checkpoints layers in training alone; their children, dropout among them,
            # stay as they are.
            if getattr(layer, "gradient_checkpointing", None) is True:
                layer.training = True
