import pytest
import torch
from torch import Tensor

from erasure_lightning.planning.memory_tracker import MemoryTracker, shapes
from erasure_lightning.planning.result_cache import ResultCache

aten = torch.ops.aten


def fake(*shape, dtype=torch.float32):
    with shapes():
        return torch.empty(shape, dtype=dtype)


def described(out, tensors):
    """Layout of results, and which arguments they are or share a storage with."""
    values = out if isinstance(out, tuple | list) else (out,)
    return type(out), [
        value is not None
        and (
            value.dtype,
            tuple(value.shape),
            value.stride(),
            value.storage_offset(),
            value.untyped_storage().nbytes(),
            value.device,
            [value is tensor for tensor in tensors],
            [
                value.untyped_storage()._cdata == tensor.untyped_storage()._cdata
                for tensor in tensors
            ],
        )
        for value in values
    ]


@pytest.mark.parametrize(
    ("func", "others"),
    [
        (aten.add.Tensor, [2.0]),
        (aten.t.default, []),
        (aten.slice.Tensor, [0, 1, 3]),
        (aten.mul_.Tensor, [2.0]),
        (aten.split.Tensor, [1]),
        (aten.max.dim, [0]),
        (aten.cat.default, None),
        (aten.detach.default, []),
        (aten._to_copy.default, []),
    ],
)
def test_a_repeated_result_is_like_the_first(func, others):
    cache = ResultCache()
    outs = []
    for tensor in (fake(4, 6).t(), fake(4, 6).t()):
        args = ([tensor, tensor],) if others is None else (tensor, *others)
        outs.append(described(cache.run(func, args, None), [tensor]))
    assert outs[0] == outs[1]
    assert any(cache._results.values())


def test_results_depend_on_the_types_of_numbers():
    cache = ResultCache()
    whole = fake(3, dtype=torch.int64)
    dtypes = [cache.run(aten.add.Tensor, (whole, number), None).dtype for number in (1, 1.0, 1)]
    assert dtypes == [torch.int64, torch.float32, torch.int64]


def test_what_changes_a_tensor_with_values_is_not_repeated():
    cache = ResultCache()
    known = torch.zeros(3)
    for _ in range(2):
        cache.run(aten.add_.Tensor, (known, fake(3)), None)
    assert not any(cache._results.values())


def test_a_result_is_counted_each_time():
    with MemoryTracker() as tracker:
        first: Tensor = fake(1000) + 1
        second = fake(1000) + 1
        assert tracker.live >= 8000
        del first
        live = tracker.live
        del second
    assert tracker.live == live - 4000
