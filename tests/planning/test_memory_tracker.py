import torch
from torch import nn

from erasure_lightning.backbones.tiny import TinyBackbone
from erasure_lightning.planning.memory_tracker import MemoryTracker, nbytes, shapes, without_values


def test_tensors_count_while_they_are_there():
    with MemoryTracker() as ledger:
        first = torch.zeros(1000)
        part = first[:10].view(2, 5)
        assert ledger.live == 4000
        second = first + 1
        del first
        assert ledger.live == 8000  # the view holds all of it
        del part, second
    assert (ledger.live, ledger.peak) == (0, 8000)
    assert ledger.restart() == 8000
    assert ledger.peak == 0


def test_what_a_backward_needs_counts_until_it_has_run():
    layer = nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 8))
    with MemoryTracker() as ledger:
        ledger.hold(layer.parameters())
        loss = layer(torch.ones(100, 8)).sum()
        assert ledger.live >= 100 * 64 * 4
        loss.backward()
        del loss
        assert ledger.live == nbytes(layer.parameters()) + nbytes(
            p.grad for p in layer.parameters()
        )


def test_without_values_a_model_has_its_shapes_and_answers_with_shapes():
    model, wanted = TinyBackbone(), TinyBackbone()
    without_values(model, torch.bfloat16, shapes())
    assert {n: p.shape for n, p in model.named_parameters()} == {
        n: p.shape for n, p in wanted.named_parameters()
    }
    assert nbytes(model.parameters()) == nbytes(wanted.parameters()) / 2
    said = model.denoise(
        torch.ones(2, 4, 8, 8), torch.tensor([1, 2]), model.encode(["a cat", "a dog"])
    )
    assert said.shape == (2, 4, 8, 8)
    assert said.dtype == torch.float32


def test_code_that_asks_for_values_goes_on():
    with shapes():
        unknown = torch.rand(3, 4)
    known = torch.tensor([[True, False, True, False]] * 3)
    with MemoryTracker():
        assert unknown.sum().item() == 1
        assert bool((unknown > 2).any())
        assert unknown[known].shape == (6,)
        assert unknown[unknown > 2].shape == (12,)
