"""Blocks of a planned model take the memory of an equal block, which is run once."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd import Function
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from erasure_lightning.distributed.fsdp import find_blocks
from erasure_lightning.planning.memory_tracker import MemoryTracker

#: Packages whose modules do nothing in a forward but compute their results.
_STATELESS = {"torch", "diffusers", "transformers", "peft"}

#: Attributes of modules that differ between equal blocks.
_NUMBERS = {"layer_idx", "layer_number"}

#: Types of attributes that tell blocks of equal weights apart.
_PLAIN = frozenset({bool, int, float, str, type(None)})

#: Attributes of modules that hold hooks.
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")

#: Number of an input, or shape, strides, offset, dtype and number of the storage.
_Output = int | tuple[torch.Size, tuple[int, ...], int, torch.dtype, int]


@dataclass(frozen=True)
class _BlockMemory:
    """What a forward and a backward of a block allocate, in bytes.

    Args:
        forward: Peak of the forward, above what was allocated before.
        checkpointed: Likewise while a checkpoint drops what it saves.
        recomputed: Likewise until all is saved, where a checkpoint's second forward stops.
        saved: What the forward leaves for the backward, without inputs and outputs.
        backward: Peak of the backward, above what was allocated before.
        outputs: The outputs that are tensors.
        storages: Bytes of the new outputs' storages.
        differentiable: Whether each new output has a gradient.
        gradients: Shape and dtype of each gradient of the backward; None for those without one.
        needed: Numbers of the inputs that the backward needs.
        result: Structure of the outputs, and those that are not tensors.
    """

    forward: int
    checkpointed: int
    recomputed: int
    saved: int
    backward: int
    outputs: list[_Output]
    storages: list[int]
    differentiable: list[bool]
    gradients: list[tuple[torch.Size, torch.dtype] | None]
    needed: list[int]
    result: tuple[TreeSpec, list[Any]]

    @property
    def own(self) -> int:
        """Bytes of the new outputs."""
        return sum(self.storages)

    def allocate(self, like: Tensor) -> list[Tensor]:
        """The new outputs, on the device of a tensor."""
        storages: dict[int, Tensor] = {}
        outputs = []
        for output in self.outputs:
            if isinstance(output, int):
                continue
            shape, strides, offset, dtype, number = output
            if number not in storages:
                count = self.storages[number] // dtype.itemsize
                storages[number] = like.new_empty(count, dtype=dtype)
            outputs.append(storages[number].as_strided(shape, strides, offset))
        return outputs

    def all_outputs(self, new: Iterable[Tensor], inputs: Sequence[Tensor]) -> Any:
        """What the block returns."""
        rest = iter(new)
        outputs = iter([inputs[o] if isinstance(o, int) else next(rest) for o in self.outputs])
        structure, others = self.result
        return tree_unflatten([next(outputs) if o is _TENSOR else o for o in others], structure)


class _RepeatedBlock(Function):
    """An operation that takes the memory of a block, forward and backward."""

    @staticmethod
    def forward(
        ctx: Any, block: _BlockMemory, memory: MemoryTracker, count: int, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        """The outputs; ``count`` of the tensors are inputs, the others weights."""
        inputs = tensors[:count]
        like = _first_fake(inputs)
        ctx.block = block
        ctx.memory = memory
        outputs = block.allocate(like)
        checkpoint = _checkpoint_hook()
        if checkpoint == _RECOMPUTES:
            memory.rise(block.recomputed)
            for output in outputs:  # whose operations are not repeated
                memory.free(output)
        else:
            memory.rise((block.checkpointed if checkpoint else block.forward) - block.own)
        # What a checkpoint drops takes no memory, but its shape is compared with the second one's.
        dropped = checkpoint not in (None, _RECOMPUTES)
        saved = like.new_empty(1 if dropped else block.saved, dtype=torch.uint8)
        saved = saved.expand(block.saved) if dropped else saved
        ctx.save_for_backward(saved, *(inputs[number] for number in block.needed))
        ctx.mark_non_differentiable(
            *(o for o, d in zip(outputs, block.differentiable, strict=True) if not d)
        )
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *_: Any) -> tuple[Any, ...]:
        """Gradients of the inputs and of the weights."""
        saved = ctx.saved_tensors[0]
        ctx.memory.rise(ctx.block.backward)
        ctx.memory.free(saved)
        gradients = [
            saved.new_empty(gradient[0], dtype=gradient[1]) if gradient and needed else None
            for gradient, needed in zip(ctx.block.gradients, ctx.needs_input_grad[3:], strict=True)
        ]
        return None, None, None, *gradients


class _Gradients(Function):
    """A scalar of tensors, whose backward allocates their gradients."""

    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> Tensor:
        """Any scalar."""
        ctx.forms = [(tensor.shape, tensor.dtype) for tensor in tensors]
        return tensors[0].new_empty(())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        """Gradients of the tensors."""
        return tuple(gradients[0].new_empty(shape, dtype=dtype) for shape, dtype in ctx.forms)


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
        self._known: dict[Any, _BlockMemory | None] = {}

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
        forwards = {cls: cls.forward for cls in classes}
        for cls in classes:
            cast(Any, cls).forward = self._replacement(forwards[cls])
        try:
            yield
        finally:
            for cls, forward in forwards.items():
                cast(Any, cls).forward = forward

    def _replacement(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        def replacement(block: nn.Module, *args: Any, **kwargs: Any) -> Any:
            return self._run(forward, block, args, kwargs)

        return replacement

    def _run(
        self, forward: Callable[..., Any], block: nn.Module, args: Any, kwargs: dict[str, Any]
    ) -> Any:
        leaves, structure = tree_flatten((args, kwargs))
        inputs = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        key = _key(block, leaves, structure)
        if key is None or not any(isinstance(tensor, FakeTensor) for tensor in inputs):
            return forward(block, *args, **kwargs)
        trains = torch.is_grad_enabled()
        weights = [p for p in block.parameters() if p.requires_grad] if trains else []
        if key not in self._known:

            def call(tensors: list[Tensor]) -> Any:
                rest = iter(tensors)
                new = [next(rest) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
                new_args, new_kwargs = tree_unflatten(new, structure)
                return forward(block, *new_args, **new_kwargs)

            self._known[key] = self._measured(call, inputs, weights)
        known = self._known[key]
        if known is None:
            return forward(block, *args, **kwargs)
        return self._repeat(known, inputs, weights)

    def _repeat(
        self, block: _BlockMemory, inputs: list[Tensor], weights: list[nn.Parameter]
    ) -> Any:
        """The outputs of a block whose memory is known."""
        if any(block.differentiable):
            apply = cast(Any, _RepeatedBlock).apply
            new = apply(block, self._memory, len(inputs), *inputs, *weights)
        else:
            self._memory.rise(block.forward)
            new = block.allocate(_first_fake(inputs))
        return block.all_outputs(new, inputs)

    def _measured(
        self,
        call: Callable[[list[Tensor]], Any],
        inputs: list[Tensor],
        weights: list[nn.Parameter],
    ) -> _BlockMemory | None:
        """The memory of a block; None if its outputs are not tensors of their own."""
        memory = self._memory
        peak = memory.restart()
        before = memory.live
        copies = {id(tensor): _detached(tensor) for tensor in inputs}
        own = [copies[id(tensor)] for tensor in inputs]
        checkpointed = self._checkpointed(call, own) if torch.is_grad_enabled() else 0
        saved_storages: set[int] = set()
        peaks = [0]

        def pack(tensor: Tensor) -> Tensor:
            saved_storages.add(tensor.untyped_storage()._cdata)
            peaks.append(memory.peak - before)
            return tensor

        # The hooks of a checkpoint around the block must not see what this run saves.
        with saved_tensors_hooks(pack, lambda tensor: tensor):
            leaves, structure = tree_flatten(call(own))
        outputs = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        others = [_TENSOR if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        forms, storages = _forms(outputs, own)
        rise = memory.peak - before
        saved = memory.live - before - sum(storages)
        new = [o for o, form in zip(outputs, forms, strict=True) if not isinstance(form, int)]
        differentiable = [output.requires_grad for output in new]
        roots = [output for output in new if output.requires_grad]
        del outputs, leaves, new
        needed = [
            number
            for number, tensor in enumerate(own)
            if tensor.untyped_storage()._cdata in saved_storages
        ]
        backward, gradients = self._backward(roots, [*own, *weights])
        memory.peak = max(peak, memory.live)
        if None in forms or not all(o is _TENSOR or type(o) in _PLAIN for o in others):
            return None
        return _BlockMemory(
            rise,
            checkpointed,
            peaks[-1],
            saved,
            backward,
            cast(list[_Output], forms),
            storages,
            differentiable,
            gradients,
            needed,
            (structure, others),
        )

    def _checkpointed(self, call: Callable[[list[Tensor]], Any], inputs: list[Tensor]) -> int:
        """Peak of a forward in bytes, of which nothing is saved."""
        memory = self._memory
        before = memory.live
        drop = cast(Any, lambda _: None)
        with saved_tensors_hooks(drop, drop):
            call(inputs)
        return memory.restart() - before

    def _backward(
        self, roots: list[Tensor], tensors: list[Tensor]
    ) -> tuple[int, list[tuple[torch.Size, torch.dtype] | None]]:
        """Peak of a backward in bytes, and shape and dtype of each gradient; empties ``roots``."""
        found: dict[int, tuple[torch.Size, torch.dtype]] = {}
        if not roots:
            return 0, [None] * len(tensors)
        sizes = sum(root.numel() * root.element_size() for root in roots)
        total = cast(Any, _Gradients).apply(*roots)
        roots.clear()
        self._memory.restart()
        start = self._memory.live + sizes
        leaves = list({id(t): t for t in tensors if t.requires_grad}.values())
        gradients = torch.autograd.grad(total, leaves, allow_unused=True)
        for leaf, gradient in zip(leaves, gradients, strict=True):
            if gradient is not None:
                found[id(leaf)] = (gradient.shape, gradient.dtype)
        # A tensor that is two inputs has one gradient.
        return self._memory.peak - start, [found.pop(id(tensor), None) for tensor in tensors]


#: In place of an output that is a tensor.
_TENSOR = object()


#: Name of the hook with which a checkpoint's second forward saves tensors.
_RECOMPUTES = "_recomputation_hook"


def _checkpoint_hook() -> str | None:
    """Name of the class whose hooks save tensors now; None without a checkpoint."""
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(False)
    return hooks and hooks[0].__qualname__.partition(".")[0]


def _detached(tensor: Tensor) -> Tensor:
    return tensor.detach().requires_grad_(tensor.requires_grad)


def _first_fake(tensors: Iterable[Tensor]) -> Tensor:
    return next(tensor for tensor in tensors if isinstance(tensor, FakeTensor))


def _forms(outputs: list[Tensor], inputs: list[Tensor]) -> tuple[list[_Output | None], list[int]]:
    """The form of each output, and the sizes of their storages; None for a view of an input."""
    theirs = {tensor.untyped_storage()._cdata for tensor in inputs}
    numbers: dict[int, int] = {}
    sizes: list[int] = []
    forms: list[_Output | None] = []
    for output in outputs:
        storage = output.untyped_storage()
        same = [place for place, tensor in enumerate(inputs) if tensor is output]
        if same:
            forms.append(same[0])
        elif storage._cdata in theirs or not isinstance(output, FakeTensor):
            forms.append(None)
        else:
            if storage._cdata not in numbers:
                numbers[storage._cdata] = len(sizes)
                sizes.append(storage.nbytes())
            offset = int(output.storage_offset())
            layout = (output.shape, output.stride(), offset, output.dtype)
            forms.append((*layout, numbers[storage._cdata]))
    return forms, sizes


def _key(block: nn.Module, leaves: list[Any], structure: TreeSpec) -> Any:
    """What a block's memory depends on; None if its forward may do more than compute."""
    kind = _kind(block)
    if kind is None:
        return None
    identities: dict[int, int] = {}
    inputs: list[Any] = []
    for leaf in leaves:
        if isinstance(leaf, Tensor):
            layout = (leaf.dtype, leaf.shape, leaf.stride(), leaf.requires_grad)
            inputs.append((isinstance(leaf, FakeTensor), *layout))
            inputs.append(identities.setdefault(id(leaf), len(identities)))
        elif type(leaf) in _PLAIN:
            inputs.append((type(leaf), leaf))
        else:
            return None
    autocast = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu")
    return kind, structure, tuple(inputs), torch.is_grad_enabled(), autocast


def _kind(block: nn.Module) -> Any:
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
            [(k, v) for k, v in attributes.items() if type(v) in _PLAIN and k not in _NUMBERS]
        )
        weights = tuple(
            [
                weight is not None and (key, weight.shape, weight.dtype, weight.requires_grad)
                for key, weight in attributes["_parameters"].items()
            ]
        )
        children = attributes["_modules"]
        parts.append((type(module), type(processor), settings, weights, tuple(children)))
        rest.extend([child for child in children.values() if child is not None])
    return tuple(parts)


def _is_foreign(part: Any) -> bool:
    return part is not None and type(part).__module__.partition(".")[0] not in _STATELESS


def _has_hooks(attributes: dict[str, Any]) -> bool:
    return any(map(attributes.get, _HOOKS))
