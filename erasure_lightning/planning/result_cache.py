"""`ResultCache`: results of operations on fake tensors, by the shapes of their arguments."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, cast

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, in_kernel_invocation_manager


def _fake(mode: FakeTensorMode, empty: Tensor, device: torch.device) -> Tensor:
    """``FakeTensor(mode, empty, device)``, whose constructor takes a third of a plan's time."""
    fake = Tensor._make_subclass(
        FakeTensor, empty, False, dispatch_device=True, device_for_backend_keys=device
    )
    vars(fake).update(_attributes(mode, device))
    return fake


@lru_cache(maxsize=8)
def _attributes(mode: FakeTensorMode, device: torch.device) -> dict[str, Any]:
    """The attributes of new fake tensors."""
    return vars(FakeTensor(mode, torch.empty(0, device="meta"), device)).copy()


@dataclass(frozen=True, slots=True)
class _Form:
    """A tensor that an operation returns.

    Args:
        argument: Number of the argument that it is, or whose storage it shares; None if it has a
            storage of its own.
        is_argument: Whether it is that argument itself.
        layout: Its dtype, shape, strides, and offset in the storage.
        device: The device that it is on in place of the meta device.
    """

    argument: int | None
    is_argument: bool
    layout: tuple[torch.dtype, tuple[int, ...], tuple[int, ...], int]
    device: torch.device

    def new(self, tensors: list[Tensor]) -> Tensor:
        """A tensor of this form, where an operation's arguments have these tensors."""
        dtype, shape, strides, offset = self.layout
        if self.argument is None:
            empty = torch.empty_strided(shape, strides, dtype=dtype, device="meta")
        elif self.is_argument:
            return tensors[self.argument]
        else:
            storage = tensors[self.argument].untyped_storage()
            empty = torch.empty(0, dtype=dtype, device="meta").set_(storage, offset, shape, strides)
        mode = next(t.fake_mode for t in tensors if isinstance(t, FakeTensor))
        return _fake(mode, empty, self.device)


@dataclass(frozen=True, slots=True)
class _Result:
    """What an operation returns: one value, or a list or tuple of them.

    Args:
        container: ``list`` or ``tuple``; None for a single value.
        forms: Forms of the values; None for None.
    """

    container: type | None
    forms: tuple[_Form | None, ...]

    def new(self, tensors: list[Tensor]) -> Any:
        """The same result for other tensors of equal shapes."""
        values = [form and form.new(tensors) for form in self.forms]
        return values[0] if self.container is None else self.container(values)


class ResultCache:
    """Runs operations on fake tensors, each once for equal arguments.

    PyTorch has such a cache of its own, whose keys and tensors take about ten times as long: 0.2 ms
    for each of the hundred thousand operations of a large model's step. Results are as without
    the cache: fresh tensors, views of the arguments, or the arguments themselves. Operations whose
    results are something else, and those that change or view a tensor with values, always run.
    """

    def __init__(self) -> None:
        self._results: dict[Any, _Result | None] = {}

    def run(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any] | None
    ) -> Any:
        """The result of an operation, some of whose tensors are fake.

        Args:
            func: The operation.
            args: Its arguments.
            kwargs: Its arguments by name.
        """
        tensors: list[Tensor] = []
        try:
            key = (func, _key(args, tensors), _key(tuple(kwargs.items()), tensors) if kwargs else 0)
            known = self._results.get(key, self)
        except TypeError:  # an argument that has no hash
            return func(*args, **(kwargs or {}))
        if isinstance(known, _Result):
            return known.new(tensors)
        out = _on_meta_device(func, args, kwargs or {}, tensors)
        if known is self:
            same = _key(args, []) == key[1]  # nothing was resized
            self._results[key] = _result(func, tensors, out) if same else None
        return out


def _on_meta_device(
    func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], tensors: list[Tensor]
) -> Any:
    """The result of the meta device's kernel, where there is one.

    `FakeTensorMode` calls it too, after a millisecond of checks for what is excluded here: other
    devices, tensors with values, and shapes that depend on values.
    """
    plain = (
        "device" not in kwargs
        and not _VALUE_TAGS & {*func.tags}
        and all(isinstance(t, FakeTensor) and t.fake_device.type == "cpu" for t in tensors)
    )
    if plain:
        mode = cast(FakeTensor, tensors[0]).fake_mode
        try:
            with in_kernel_invocation_manager(mode):
                out = func(*args, **kwargs)
        except (NotImplementedError, RuntimeError):  # no kernel, or an error that is raised below
            return func(*args, **kwargs)
        device = torch.device("cpu")
        wrap = partial(_wrapped, mode, device)
        return type(out)(map(wrap, out)) if type(out) in (list, tuple) else wrap(out)
    return func(*args, **kwargs)


def _wrapped(mode: FakeTensorMode, device: torch.device, value: Any) -> Any:
    """A value of a meta kernel; a tensor that is no argument becomes a fake one."""
    if isinstance(value, Tensor) and not isinstance(value, FakeTensor):
        return _fake(mode, value, device)
    return value


#: Tags of operations whose results depend on values.
_VALUE_TAGS = {torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output}


def _key(value: Any, tensors: list[Tensor]) -> Any:
    """What a result depends on; the tensors among the arguments are appended to ``tensors``."""
    if isinstance(value, Tensor):
        tensors.append(value)
        fake = isinstance(value, FakeTensor)
        return fake, value.dtype, value.shape, value.stride(), value.storage_offset()
    if isinstance(value, list | tuple):
        return tuple([_key(item, tensors) for item in value])
    return value.__class__, value  # 1, 1.0 and True are equal


def _result(func: Any, tensors: list[Tensor], out: Any) -> _Result | None:
    """The description of a result; None for one that cannot be described."""
    aliases = any(argument.alias_info is not None for argument in func._schema.arguments)
    if aliases and not all(isinstance(tensor, FakeTensor) for tensor in tensors):
        return None
    values = out if isinstance(out, tuple | list) else (out,)
    if not all(value is None or isinstance(value, FakeTensor) for value in values):
        return None
    places = {id(tensor): place for place, tensor in reversed([*enumerate(tensors)])}
    storages = {
        tensor.untyped_storage()._cdata: place for place, tensor in reversed([*enumerate(tensors)])
    }
    forms = [None if value is None else _form(value, places, storages) for value in values]
    tensors_out = [value for value in values if value is not None]
    own = [
        value.untyped_storage()._cdata
        for value, form in zip(values, forms, strict=True)
        if form and form.argument is None
    ]
    if len({*own}) < len(own) or not all(
        _equal(form.new(tensors), value)
        for value, form in zip(tensors_out, filter(None, forms), strict=True)
    ):
        return None
    return _Result(type(out) if values is out else None, tuple(forms))


def _form(value: FakeTensor, places: dict[int, int], storages: dict[int, int]) -> _Form:
    """The form of a value; not every operation that returns a view declares it.

    Args:
        value: The value.
        places: Numbers of the arguments by their ids.
        storages: Likewise by their storages.
    """
    identical = places.get(id(value))
    shared = storages.get(value.untyped_storage()._cdata)
    argument = shared if identical is None else identical
    layout = (value.dtype, tuple(value.shape), value.stride(), int(value.storage_offset()))
    return _Form(argument, identical is not None, layout, value.fake_device)


def _equal(new: Tensor, value: Tensor) -> bool:
    """Whether a new tensor is like a result."""
    return (
        new.untyped_storage().nbytes() == value.untyped_storage().nbytes()
        and new.storage_offset() == value.storage_offset()
        and new.is_conj() == value.is_conj()
        and new.is_neg() == value.is_neg()
    )
