import torch
from torch import nn

from erasure_lightning.backbones.tiny import TinyBackbone, TinyFlux
from erasure_lightning.planning.memory_tracker import MemoryTracker, nbytes, shapes, without_values


def test_tensors_count_while_they_are_there():
    with MemoryTracker() as tracker:
        first = torch.zeros(1000)
        part = first[:10].view(2, 5)
        assert tracker.live == 4000
        second = first + 1
        del first
        assert tracker.live == 8000  # the view holds all of it
        del part, second
    assert (tracker.live, tracker.peak) == (0, 8000)
    assert tracker.restart() == 8000
    assert tracker.peak == 0


def test_what_a_backward_needs_counts_until_it_has_run():
    layer = nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 8))
    with MemoryTracker() as tracker:
        tracker.hold(layer.parameters())
        loss = layer(torch.ones(100, 8)).sum()
        assert tracker.live >= 100 * 64 * 4
        loss.backward()
        del loss
        assert tracker.live == nbytes(layer.parameters()) + nbytes(
            p.grad for p in layer.parameters()
        )


def test_without_values_a_model_has_its_shapes_and_answers_with_shapes():
    model, expected = TinyBackbone(), TinyBackbone()
    without_values(model, torch.bfloat16, shapes())
    assert {n: p.shape for n, p in model.named_parameters()} == {
        n: p.shape for n, p in expected.named_parameters()
    }
    assert nbytes(model.parameters()) == nbytes(expected.parameters()) / 2
    prediction = model.denoise(
        torch.ones(2, 4, 8, 8), torch.tensor([1, 2]), model.encode(["a cat", "a dog"])
    )
    assert prediction.shape == (2, 4, 8, 8)
    assert prediction.dtype == torch.float32


def test_without_values_shared_weights_are_shared_and_count_once():
    """T5's token embeddings have two names."""
    model, expected = TinyFlux(), TinyFlux()
    without_values(model, torch.float32, shapes())
    assert nbytes(model.parameters()) == nbytes(expected.parameters())
    assert [n for n, _ in model.named_parameters()] == [n for n, _ in expected.named_parameters()]
    t5 = model.towers[1].model
    assert t5.encoder.embed_tokens.weight is t5.shared.weight


def test_code_that_asks_for_values_goes_on():
    with shapes():
        unknown = torch.rand(3, 4)
    known = torch.tensor([[True, False, True, False]] * 3)
    with MemoryTracker():
        assert unknown.sum().item() == 1
        assert bool((unknown > 2).any())
        assert unknown[known].shape == (6,)
        assert unknown[unknown > 2].shape == (12,)
