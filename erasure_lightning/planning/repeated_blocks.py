"""Blocks of a planned model take the memory of an equal block, which is run once."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from erasure_lightning.backbones.eight_bit import EightBitLinear
from erasure_lightning.distributed.fsdp import find_blocks
from erasure_lightning.planning.block_memory import (
    PLAIN,
    BlockMemory,
    measure_block,
    repeat_block,
)
from erasure_lightning.planning.memory_tracker import MemoryTracker

#: Packages whose modules only compute their results in a forward.
_STATELESS = {"torch", "diffusers", "transformers", "peft"}

#: Attributes of modules that differ between equal blocks.
_NUMBERS = {"layer_idx", "layer_number"}

#: Attributes of modules that hold hooks.
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class RepeatedBlocks:
    """Runs a block of each kind once, forward and backward, apart from the model.

    Blocks are of one kind if their structure, settings, weights' shapes and inputs' shapes are
    equal. Their peaks are those of all operations; of the hundreds of thousands of operations of a
    large model's step a few thousand remain. Blocks with hooks, and with modules that are not of
    PyTorch or Hugging Face, run as they are: their forwards may do more than compute.

    Args:
        memory: The tracker that is active.
    """

    def __init__(self, memory: MemoryTracker) -> None:
        self._memory = memory
        self._known: dict[Any, BlockMemory | None] = {}

    @contextmanager
    def replaced(self, parts: Iterable[nn.Module]) -> Iterator[None]:
        """Context in which the blocks of models are replaced.

        Args:
            parts: Denoisers and containers of text encoders.
        """
        classes = {
            type(module)
            for part in parts
            for blocks in [find_blocks(part)]
            for module in part.modules()
            if id(module) in blocks
        }
        # Not the forwards: those of transformers checkpoint only if no other one is around them.
        with ExitStack() as stack:
            for cls in classes:
                stack.enter_context(patch.object(cls, "__call__", self._replacement(cls.__call__)))
            yield

    def _replacement(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        def replacement(block: nn.Module, *args: Any, **kwargs: Any) -> Any:
            return self._run(forward, block, args, kwargs)

        return replacement

    def _run(
        self, forward: Callable[..., Any], block: nn.Module, args: Any, kwargs: dict[str, Any]
    ) -> Any:
        leaves, structure = tree_flatten((args, kwargs))
        inputs = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        parameters: list[nn.Parameter] = []
        key = _key(block, leaves, structure, parameters)
        trains = torch.is_grad_enabled()
        weights = [p for p in parameters if p.requires_grad] if trains else []
        if key is None or _casts(weights, parameters):
            return forward(block, *args, **kwargs)
        if key not in self._known:

            def call(tensors: list[Tensor]) -> Any:
                rest = iter(tensors)
                new = [next(rest) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
                new_args, new_kwargs = tree_unflatten(new, structure)
                return forward(block, *new_args, **new_kwargs)

            # A checkpoint within a block holds its inputs, and saves them nowhere.
            holds = block.training and getattr(block, "gradient_checkpointing", False)
            self._known[key] = measure_block(self._memory, call, inputs, weights, holds)
        known = self._known[key]
        if known is None:
            return forward(block, *args, **kwargs)
        return repeat_block(self._memory, known, inputs, weights)


def _casts(weights: list[nn.Parameter], parameters: list[nn.Parameter]) -> bool:
    """Whether autocast keeps copies of more than a hundredth of a block, for several forwards."""
    if not weights or not torch.is_autocast_enabled("cpu"):
        return False
    precision = torch.get_autocast_dtype("cpu")
    copied = sum(weight.numel() for weight in weights if weight.dtype != precision)
    return 100 * copied > sum(parameter.numel() for parameter in parameters)


def _key(
    block: nn.Module, leaves: list[Any], structure: TreeSpec, parameters: list[nn.Parameter]
) -> Any:
    """What a block's memory depends on; None if its forward may do more than compute.

    Appends the block's parameters to ``parameters``.
    """
    kind = _kind(block, parameters)
    if kind is None or not any(isinstance(leaf, FakeTensor) for leaf in leaves):
        return None
    identities: dict[int, int] = {}
    inputs: list[Any] = []
    for leaf in leaves:
        if isinstance(leaf, Tensor):
            layout = (leaf.dtype, leaf.shape, leaf.stride(), leaf.requires_grad)
            inputs.append((isinstance(leaf, FakeTensor), *layout))
            inputs.append(identities.setdefault(id(leaf), len(identities)))
        elif type(leaf) in PLAIN:
            inputs.append((type(leaf), leaf))
        else:
            return None
    autocast = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu")
    return kind, structure, tuple(inputs), torch.is_grad_enabled(), autocast


def _kind(block: nn.Module, parameters: list[nn.Parameter]) -> Any:
    """Structure, settings and weights of a block without values; None with foreign parts."""
    parts: list[Any] = []
    rest = [block]
    while rest:  # ten times as fast as `named_modules`
        module = rest.pop()
        attributes = module.__dict__
        processor = attributes.get("processor")
        if _is_foreign(module) or _is_foreign(processor) or _has_hooks(attributes):
            return None
        settings = tuple(
            [(k, v) for k, v in attributes.items() if type(v) in PLAIN and k not in _NUMBERS]
        )
        weights = tuple(
            [
                weight is not None and (key, weight.shape, weight.dtype, weight.requires_grad)
                for key, weight in attributes["_parameters"].items()
            ]
        )
        parameters += [p for p in attributes["_parameters"].values() if p is not None]
        children = attributes["_modules"]
        parts.append((type(module), type(processor), settings, weights, tuple(children)))
        rest.extend([child for child in children.values() if child is not None])
    return tuple(parts)


def _is_foreign(part: Any) -> bool:
    if part is None or type(part) is EightBitLinear:
        return False
    return type(part).__module__.partition(".")[0] not in _STATELESS


def _has_hooks(attributes: dict[str, Any]) -> bool:
    return any(map(attributes.get, _HOOKS))
