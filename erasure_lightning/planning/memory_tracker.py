"""Estimates peak memory with fake tensors: shapes without values.

``torch.distributed._tools.mem_tracker.MemTracker`` finds the same peak for one forward and backward
pass (4.055 to our 4.059 MB on `TinyBackbone`). It refuses a module that is called twice before its
backward pass, as the denoiser is in every erasure loss, has no peak of a part of a run, and leaves
code that reads a value failing.
"""

import weakref
from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from erasure_lightning.planning.result_cache import ResultCache

_INDEXING = (
    torch.ops.aten.index.Tensor,
    torch.ops.aten.index_put.default,
    torch.ops.aten.index_put_.default,
)


def shapes() -> FakeTensorMode:
    """A mode in which new tensors have no values; results that are computed from them have none."""
    return FakeTensorMode(allow_non_fake_inputs=True)


def without_values(module: nn.Module, dtype: torch.dtype, mode: FakeTensorMode) -> None:
    """Replace a module's weights, in place, by fake tensors of the same shapes.

    A weight that several parts share (T5's token embeddings) is one fake tensor, too.

    Args:
        module: Whose parameters and buffers are replaced.
        dtype: Precision of those that are floating point.
        mode: Makes the fake tensors.
    """
    replaced: dict[Tensor, nn.Parameter] = {}
    for part in module.modules():
        for name, weight in part._parameters.items():
            if weight is not None:
                if weight not in replaced:
                    replaced[weight] = as_parameter(_faked(weight, dtype, mode))
                part._parameters[name] = replaced[weight]
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = _faked(
                    buffer, dtype if buffer.is_floating_point() else buffer.dtype, mode
                )


def as_parameter(tensor: Tensor) -> nn.Parameter:
    """A fake tensor as a parameter; ``nn.Parameter`` would copy it."""
    cast(Any, tensor)._is_param = True
    return cast(nn.Parameter, tensor)


def _faked(tensor: Tensor, dtype: torch.dtype, mode: FakeTensorMode) -> Tensor:
    if tensor.is_meta:  # of a model without files
        return FakeTensor(mode, torch.empty_like(tensor, dtype=dtype), torch.device("cpu"))
    like = tensor.detach().to(dtype)
    return like if isinstance(like, FakeTensor) else mode.from_tensor(like)


def nbytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of tensors; a storage that several share counts once."""
    return sum({t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}.values())


class MemoryTracker(TorchDispatchMode):
    """Counts the bytes of the tensors that operations create, until each is freed.

    Reading a value of a fake tensor gives 1 (true), so that code with branches runs.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        #: Bytes of all tensors that are alive.
        self.live = 0
        #: The most since `restart`.
        self.peak = 0
        self._known: dict[int, weakref.finalize[..., Any]] = {}
        self._cache = ResultCache()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # its guard takes as long as the rest of a dispatch, and nothing is compiled

    def hold(self, tensors: Iterable[Tensor]) -> None:
        """Count existing tensors."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            key = storage._cdata
            size = storage.nbytes()
            if key not in self._known:
                self.live += size
                self.peak = max(self.peak, self.live)
                self._known[key] = weakref.finalize(storage, self._release, key, size)
                self._known[key].atexit = False

    def _release(self, key: int, size: int) -> None:
        self._known.pop(key, None)
        self.live -= size

    def free(self, tensor: Tensor) -> None:
        """Count a tensor's storage as freed, before it is."""
        if finalizer := self._known.get(tensor.untyped_storage()._cdata):
            finalizer()

    def rise(self, size: int) -> None:
        """Count bytes that are allocated and freed."""
        self.peak = max(self.peak, self.live + size)

    def restart(self) -> int:
        """Return the peak, and begin the next at what is alive now."""
        peak, self.peak = self.peak, self.live
        return peak

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is torch.ops.prim.device.default:  # how C++ reads the device of a fake one
            return args[0].device
        if func is torch.ops.aten._local_scalar_dense.default and isinstance(args[0], FakeTensor):
            return 1.0 if args[0].is_floating_point() else 1
        if func is torch.ops.aten.equal.default and any(isinstance(t, FakeTensor) for t in args):
            return True
        if _is_foreach_inplace(func) and FakeTensor in types:
            return None  # allocates no memory, and the meta device takes its tensors one by one
        if func in _INDEXING and any(isinstance(t, FakeTensor) for t in (args[0], *args[1])):
            args = (args[0], _numbered(args[1]), *args[2:])
        if FakeTensor in types:
            out = self._cache.run(func, args, kwargs)
        else:
            out = func(*args, **(kwargs or {}))
        self.hold(
            t for t in (out if isinstance(out, tuple | list) else (out,)) if isinstance(t, Tensor)
        )
        return out


def _is_foreach_inplace(func: Any) -> bool:
    name = func.overloadpacket.__name__ if isinstance(func, OpOverload) else ""
    return name.startswith("_foreach_") and name.endswith("_")


def _numbered(index: Iterable[Tensor | None]) -> list[Tensor | None]:
    """Boolean masks as index tensors, whose shape is known; a fake mask selects everything."""
    indices: list[Tensor | None] = []
    for part in index:
        if part is None or part.dtype != torch.bool:
            indices.append(part)
        else:
            known = (
                torch.ones(part.shape, dtype=torch.bool) if isinstance(part, FakeTensor) else part
            )
            indices += known.nonzero().unbind(1)
    return indices
