"""Published models by their shapes alone."""

import pytest

from erasure_lightning.backbones.full_size import FULL_SIZE, full_size_model
from erasure_lightning.backbones.loading import load_backbone


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """Any connection is a failure."""

    def refuse(*_):
        raise AssertionError("a plan asked for the network")

    monkeypatch.setattr("socket.socket.connect", refuse)


@pytest.mark.parametrize(
    ("hub_id", "denoiser", "towers"),
    [
        ("stable-diffusion-v1-5/stable-diffusion-v1-5", 859_520_964, [123_060_480]),
        (
            "stabilityai/stable-diffusion-xl-base-1.0",
            2_567_463_684,
            [123_060_480, 694_659_840],
        ),
        (
            "stabilityai/stable-diffusion-3.5-medium",
            2_243_171_520,
            [123_650_304, 694_659_840, 4_762_310_656],
        ),
        ("black-forest-labs/FLUX.1-dev", 11_901_408_320, [123_060_480, 4_762_310_656]),
    ],
)
def test_sizes_are_the_published_ones(hub_id, denoiser, towers):
    model = load_backbone(hub_id, weights="none")
    assert sum(p.numel() for p in model.denoiser.parameters()) == denoiser
    assert [sum(p.numel() for p in t.parameters()) for t in model.text_encoders] == towers
    assert all(p.is_meta for p in model.parameters())


def test_others_are_unknown():
    assert full_size_model("somebody/a-model") is None
    assert all("/" in hub_id for hub_id in FULL_SIZE)
