"""A device beside the CPU whose tensors, as a GPU's, may not be mixed with the CPU's.

Values lie in the CPU's memory; every operation checks where its arguments are.
"""

from functools import cache

import torch
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch.utils import backend_registration
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten

ATEN = torch.ops.aten
CPU = torch.device("cpu")

#: Operations that copy from a device to another.
_COPIES = (ATEN.copy_.default, ATEN._to_copy.default)
#: Operations whose indices, their second argument, may be on the CPU.
_INDEXING = (
    ATEN.index.Tensor,
    ATEN.index_put.default,
    ATEN.index_put_.default,
    ATEN._index_put_impl_.default,
)
#: Operations that take no numbers of the CPU either.
_JOINS = (ATEN.cat.default, ATEN.stack.default)


class _Module(backend_registration._DummyBackendModule):
    def get_amp_supported_dtype(self):
        return [torch.bfloat16, torch.float16]


DEVICE = torch.device("privateuseone", 0)  # the name until it is registered


class _Tensor(torch.Tensor):
    """A tensor of the device.

    Args:
        values: On the CPU.
    """

    @staticmethod
    def __new__(cls, values):
        wrapper = torch.Tensor._make_wrapper_subclass(
            cls,
            values.shape,
            strides=values.stride(),
            storage_offset=values.storage_offset(),
            dtype=values.dtype,
            device=DEVICE,
        )
        wrapper.values = values
        return wrapper

    def __repr__(self):
        return f"{self.values!r} on {DEVICE}"

    def tolist(self):
        return self.values.tolist()

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), kwargs=None):
        return _run(operation, args, kwargs or {})


def _run(operation, args, kwargs):
    """What an operation returns, on the device if one of its arguments is."""
    leaves, spec = tree_flatten((args, kwargs))
    _check_devices(operation, args, kwargs)
    values = [_on_cpu(leaf) for leaf in leaves]
    args, kwargs = tree_unflatten(values, spec)
    result = operation(*args, **kwargs)
    requested = [leaf for leaf in leaves if isinstance(leaf, torch.device)]
    on_device = requested[-1].type == DEVICE.type if requested else bool(_tensors(leaves)[0])
    # What is modified in place is the same tensor afterwards.
    known = {id(value): leaf for value, leaf in zip(values, leaves, strict=True)}

    def placed(tensor):
        return known.get(id(tensor), _Tensor(tensor) if on_device else tensor)

    return tree_map_only(torch.Tensor, placed, result)


def _on_cpu(leaf):
    if isinstance(leaf, torch.device):
        return CPU
    return leaf.values if isinstance(leaf, _Tensor) else leaf


def _tensors(arguments):
    """The tensors among arguments: those of the device, and those of the CPU."""
    tensors = [leaf for leaf in tree_flatten(arguments)[0] if isinstance(leaf, torch.Tensor)]
    there = [tensor for tensor in tensors if isinstance(tensor, _Tensor)]
    return there, [tensor for tensor in tensors if not isinstance(tensor, _Tensor)]


def _check_devices(operation, args, kwargs):
    """Raise where a GPU would: tensors of the CPU beside the device's, but for numbers."""
    read = (args[:1], args[2:], kwargs) if operation in _INDEXING else (args, kwargs)
    there, here = _tensors(read)
    if operation in _INDEXING and here and here[0] is args[0]:
        there = _tensors((args, kwargs))[0]  # values of the CPU have no indices on the device
    if not there or operation in _COPIES:
        return
    modified = operation._schema.is_mutable and any(args[:1] and args[0] is t for t in here)
    if modified or any(tensor.dim() or operation in _JOINS for tensor in here):
        raise RuntimeError(f"{operation} found tensors on {DEVICE} and on the CPU.")


@cache  # which keeps the library: what it registers lives as long
def register():
    """Make the device known to torch, for the rest of the process."""
    backend_registration._setup_privateuseone_for_python_backend("second", _Module())
    library = torch.library.Library("_", "IMPL")
    library.fallback(
        lambda operation, *args, **kwargs: _run(operation, args, kwargs), "PrivateUse1"
    )
    # `torch.tensor` makes tensors on the CPU, then moves them.
    torch._C._set_only_lift_cpu_tensors(True)
    return library


def train_there():
    """Let trainers of the CPU train on the device, for the rest of the process."""
    construct = SingleDeviceStrategy.__init__

    def on_device(self, device=CPU, **arguments):
        construct(self, DEVICE, **arguments)

    SingleDeviceStrategy.__init__ = on_device
    CPUAccelerator.setup_device = lambda self, device: None
