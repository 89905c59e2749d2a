"""Memory without memory: tensors that have shapes and no values, and an account of all that are
alive.
"""

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

_INDEXING = (
    torch.ops.aten.index.Tensor,
    torch.ops.aten.index_put.default,
    torch.ops.aten.index_put_.default,
)


def shapes() -> FakeTensorMode:
    """While entered, tensors are made without values; outside, what is computed from them has none
    either.
    """
    return FakeTensorMode(allow_non_fake_inputs=True)


def without_values(module: nn.Module, dtype: torch.dtype, mode: FakeTensorMode) -> None:
    """Exchange a module's weights, in place, for tensors of the same shapes in a precision, which
    take no memory.
    """
    for part in module.modules():
        for name, weight in part._parameters.items():
            if weight is not None:
                part._parameters[name] = nn.Parameter(
                    _emptied(weight, dtype, mode), requires_grad=False
                )
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = _emptied(
                    buffer, dtype if buffer.is_floating_point() else buffer.dtype, mode
                )


def _emptied(tensor: Tensor, dtype: torch.dtype, mode: FakeTensorMode) -> Tensor:
    like = tensor.detach().to(dtype)
    return like if isinstance(like, FakeTensor) else mode.from_tensor(like)


def nbytes(tensors: Iterable[Tensor]) -> int:
    """Memory of tensors; what several of them share counts once."""
    return sum({t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}.values())


class MemoryTracker(TorchDispatchMode):
    """While entered, counts the bytes of every tensor that an operation makes, until it is let go
    of.

    Code that asks a tensor without values for one is told 1 (true), so that both ways of a branch
    need not be known.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        #: Bytes alive now, and at the most since `restart`.
        self.live = self.peak = 0
        self._known: set[int] = set()

    def hold(self, tensors: Iterable[Tensor]) -> None:
        """Count tensors that were made before."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            key, size = storage._cdata, storage.nbytes()
            if key not in self._known:
                self._known.add(key)
                self.live += size
                self.peak = max(self.peak, self.live)
                weakref.finalize(storage, self._release, key, size).atexit = False

    def _release(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size

    def restart(self) -> int:
        """The peak so far; the next begins at what is alive now."""
        peak, self.peak = self.peak, self.live
        return peak

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and isinstance(args[0], FakeTensor):
            return 1.0 if args[0].is_floating_point() else 1
        if func is torch.ops.aten.equal.default and any(isinstance(t, FakeTensor) for t in args):
            return True
        if func in _INDEXING and any(isinstance(t, FakeTensor) for t in (args[0], *args[1])):
            args = (args[0], _numbered(args[1]), *args[2:])
        out = func(*args, **(kwargs or {}))
        self.hold(
            t for t in (out if isinstance(out, tuple | list) else (out,)) if isinstance(t, Tensor)
        )
        return out


def _numbered(index: Iterable[Tensor | None]) -> list[Tensor | None]:
    """Masks as numbers, whose count a shape can be made of; a mask without values marks everything."""
    found: list[Tensor | None] = []
    for part in index:
        if part is None or part.dtype != torch.bool:
            found.append(part)
        else:
            known = (
                torch.ones(part.shape, dtype=torch.bool) if isinstance(part, FakeTensor) else part
            )
            found += known.nonzero().unbind(1)
    return found
