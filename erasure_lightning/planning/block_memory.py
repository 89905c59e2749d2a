"""`BlockMemory`: what a block of a model allocates, forward and backward, without operations."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd import Function
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from erasure_lightning.planning.block_backward import measure_backward
from erasure_lightning.planning.memory_tracker import MemoryTracker

#: Types of values that are compared.
PLAIN = frozenset({bool, int, float, str, type(None)})

#: In place of an output that is a tensor.
TENSOR = object()

#: Number of an input, or shape, strides, offset, dtype and number of the storage.
_Output = int | tuple[torch.Size, tuple[int, ...], int, torch.dtype, int]

#: Name of the hook with which a checkpoint's second forward saves tensors.
_RECOMPUTES = "_recomputation_hook"


@dataclass(frozen=True)
class BlockMemory:
    """What a forward and a backward of a block allocate, in bytes.

    Args:
        forward: Peak of the forward, above what was allocated before.
        checkpointed: Likewise while a checkpoint drops what it saves.
        recomputed: Likewise until all is saved, where a checkpoint's second forward stops.
        saved: What the forward leaves for the backward, without inputs and outputs.
        backward: Peak of the backward, above what was allocated before.
        backward_again: Likewise of a backward that does not free what was saved.
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
    backward_again: int
    outputs: list[_Output]
    storages: list[int]
    differentiable: list[bool]
    gradients: list[tuple[torch.Size, torch.dtype] | None]
    needed: list[int]
    result: tuple[TreeSpec, list[Any]]

    def allocate(self, like: Tensor) -> list[Tensor]:
        """The new outputs, on the device of a tensor."""
        storages: dict[int, Tensor] = {}
        outputs = []
        for output in self.outputs:
            if isinstance(output, int):
                continue
            shape, strides, offset, dtype, number = output
            if number not in storages:
                storages[number] = like.new_empty(
                    self.storages[number] // dtype.itemsize, dtype=dtype
                )
            outputs.append(storages[number].as_strided(shape, strides, offset))
        return outputs

    def all_outputs(self, new: Iterable[Tensor], inputs: Sequence[Tensor]) -> Any:
        """What the block returns."""
        rest = iter(new)
        outputs = iter([inputs[o] if isinstance(o, int) else next(rest) for o in self.outputs])
        structure, others = self.result
        return tree_unflatten([next(outputs) if o is TENSOR else o for o in others], structure)


class _RepeatedBlock(Function):
    """An operation that takes the memory of a block, forward and backward."""

    @staticmethod
    def forward(
        ctx: Any, block: BlockMemory, memory: MemoryTracker, count: int, *tensors: Tensor
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
            memory.rise((block.checkpointed if checkpoint else block.forward) - sum(block.storages))
        # What a checkpoint drops takes no memory, but its shape is compared with the second one's.
        ctx.dropped = checkpoint not in (None, _RECOMPUTES)
        saved = like.new_empty(1 if ctx.dropped else block.saved, dtype=torch.uint8)
        saved = saved.expand(block.saved) if ctx.dropped else saved
        ctx.save_for_backward(saved, *(inputs[number] for number in block.needed))
        ctx.set_materialize_grads(False)
        fixed = [o for o, d in zip(outputs, block.differentiable, strict=True) if not d]
        ctx.mark_non_differentiable(*fixed)
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *_: Any) -> tuple[Any, ...]:
        """Gradients of the inputs and of the weights."""
        saved = ctx.saved_tensors[0]
        keeps_graph = torch._C._autograd._get_current_graph_task_keep_graph()
        if keeps_graph and not ctx.dropped:  # a checkpoint frees what it has computed again
            ctx.memory.rise(ctx.block.backward_again)
        else:
            ctx.memory.rise(ctx.block.backward)
            ctx.memory.free(saved)
        gradients = [
            saved.new_empty(gradient[0], dtype=gradient[1]) if gradient and needed else None
            for gradient, needed in zip(ctx.block.gradients, ctx.needs_input_grad[3:], strict=True)
        ]
        return None, None, None, *gradients


def measure_block(
    memory: MemoryTracker,
    call: Callable[[list[Tensor]], Any],
    inputs: list[Tensor],
    weights: list[nn.Parameter],
    holds_inputs: bool,
) -> BlockMemory | None:
    """The memory of a block, which is run forward and backward apart from the model.

    Args:
        memory: The tracker that is active; its peak does not change.
        call: The block's forward, of other inputs.
        inputs: Its inputs.
        weights: Its trained weights.
        holds_inputs: Whether its backward needs all inputs, which are not saved as tensors.

    Returns:
        The memory; None if the outputs are not tensors of their own.
    """
    peak = memory.restart()
    copies = {id(t): t.detach().requires_grad_(t.requires_grad) for t in inputs}
    own = [copies[id(tensor)] for tensor in inputs]
    checkpointed = _checkpointed(memory, call, own) if torch.is_grad_enabled() else 0
    fields, roots, saved = _forward(memory, call, own)
    if holds_inputs:
        saved.update(tensor.untyped_storage()._cdata for tensor in own)
    backwards, gradients = measure_backward(memory, roots, [*own, *weights])
    memory.peak = max(peak, memory.live)
    others = (leaf for leaf in fields["result"][1] if leaf is not TENSOR)
    if None in fields["outputs"] or not all(type(other) in PLAIN for other in others):
        return None
    return BlockMemory(
        checkpointed=checkpointed,
        backward=backwards[1],
        backward_again=backwards[0],
        gradients=gradients,
        needed=[n for n, t in enumerate(own) if t.untyped_storage()._cdata in saved],
        **fields,
    )


def repeat_block(
    memory: MemoryTracker, block: BlockMemory, inputs: list[Tensor], weights: list[nn.Parameter]
) -> Any:
    """Outputs of a block whose memory is known, without its operations.

    Args:
        memory: The tracker that is active.
        block: The block's memory.
        inputs: The block's inputs.
        weights: The block's trained weights.
    """
    if any(block.differentiable):
        new = cast(Any, _RepeatedBlock).apply(block, memory, len(inputs), *inputs, *weights)
    else:
        memory.rise(block.forward)
        new = block.allocate(_first_fake(inputs))
    return block.all_outputs(new, inputs)


def _forward(
    memory: MemoryTracker, call: Callable[[list[Tensor]], Any], inputs: list[Tensor]
) -> tuple[dict[str, Any], list[Tensor], set[int]]:
    """Fields of a forward, its outputs with a gradient, and the storages it saves."""
    before = memory.live
    saved: set[int] = set()
    recomputed = [0]

    def pack(tensor: Tensor) -> Tensor:
        saved.add(tensor.untyped_storage()._cdata)
        recomputed.append(memory.peak - before)
        return tensor

    # The hooks of a checkpoint around the block must not see what this run saves.
    with saved_tensors_hooks(pack, lambda tensor: tensor):
        leaves, structure = tree_flatten(call(inputs))
    outputs = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    forms, storages = _forms(outputs, inputs)
    new = [o for o, form in zip(outputs, forms, strict=True) if not isinstance(form, int)]
    fields = {
        "forward": memory.peak - before,
        "recomputed": recomputed[-1],
        "saved": memory.live - before - sum(storages),
        "outputs": forms,
        "storages": storages,
        "differentiable": [output.requires_grad for output in new],
        "result": (structure, [TENSOR if isinstance(o, Tensor) else o for o in leaves]),
    }
    return fields, [output for output in new if output.requires_grad], saved


def _checkpointed(
    memory: MemoryTracker, call: Callable[[list[Tensor]], Any], inputs: list[Tensor]
) -> int:
    """Peak in bytes of a forward that saves no tensor."""
    before = memory.live
    drop = cast(Any, lambda _: None)
    with saved_tensors_hooks(drop, drop):
        call(inputs)
    return memory.restart() - before


def _checkpoint_hook() -> str | None:
    """Name of the class whose hooks save tensors now; None without a checkpoint."""
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(False)
    return hooks and hooks[0].__qualname__.partition(".")[0]


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
            layout = (output.shape, output.stride(), int(output.storage_offset()), output.dtype)
            forms.append((*layout, numbers[storage._cdata]))
    return forms, sizes
