"""DDIM in parts, and the hook that changes its steps."""

import pytest
import torch

from erasure_lightning.backbones.process import RectifiedFlow, signal_and_noise
from erasure_lightning.backbones.tiny import TINY_BACKBONES, TinyFlux
from erasure_lightning.diffusion.ddim import ddim, ddim_times, is_pure_noise


@pytest.fixture(params=TINY_BACKBONES, ids=lambda family: family.__name__)
def model(request):
    return request.param()


def test_consecutive_parts_are_the_whole(model):
    times = ddim_times(model, 4)
    x = model.noise([0, 1])
    conditioning = model.encode(["a cat", "a dog"])
    whole = ddim(model, conditioning, x, times, 3.0)
    half = ddim(model, conditioning, x, times[:3], 3.0)
    assert torch.equal(ddim(model, conditioning, half, times[2:], 3.0), whole)
    assert not torch.equal(half, whole)


def test_a_change_of_the_clean_latents_is_taken_and_none_changes_nothing(model):
    times = ddim_times(model, 3)
    x = model.noise([0])
    conditioning = model.encode(["a cat"])
    steps = []

    def change(step):
        steps.append(step)
        return step.clean, step.noise

    plain = ddim(model, conditioning, x, times)
    assert torch.equal(ddim(model, conditioning, x, times, change=change), plain)
    assert [step.number for step in steps] == list(range(len(times) - 1))
    assert [step.cleaner for step in steps] == times[1:].tolist()
    known = torch.ones_like(x)
    set_to = ddim(model, conditioning, x, times, change=lambda s: (known, torch.zeros_like(known)))
    signal, _ = signal_and_noise(model.process, times[-1])
    assert torch.allclose(set_to, signal * known)


def test_times_are_those_of_the_image_s_size():
    """FLUX.1 shifts them to noisier ones for larger images."""
    model = TinyFlux()
    small, large = (ddim_times(model, 4, size) for size in (16, 128))
    assert not torch.allclose(small, large, atol=1.0)
    assert torch.equal(large[:-1], model.sampler(4, 128).times)


def test_scales_and_pure_noise():
    flow = RectifiedFlow()
    assert [scale.item() for scale in signal_and_noise(flow, torch.tensor(250.0))] == [0.75, 0.25]
    assert is_pure_noise(flow, torch.tensor(1000.0))
    assert not is_pure_noise(flow, torch.tensor(990.0))
