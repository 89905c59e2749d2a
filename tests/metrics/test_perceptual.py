import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from erasure_lightning.errors import ErasureError
from erasure_lightning.metrics.perceptual import AlexNet, Lpips, PerceptualDistance


class Small(nn.Module):
    """A network of two layers."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Conv2d(3, 4, 3), nn.Conv2d(4, 6, 3)])

    def forward(self, x):
        first = self.layers[0](x).relu()
        return [first, self.layers[1](first).relu()]


@pytest.fixture
def small():
    return Lpips(Small(), [torch.rand(4), torch.rand(6)])


@pytest.fixture
def weights(tmp_path):
    """AlexNet of random weights as a file, named as torchvision names the whole network."""
    network = AlexNet()
    save_file(
        {f"features.{k}": v for k, v in network.features.state_dict().items()},
        tmp_path / "alexnet.safetensors",
    )
    return network, tmp_path / "alexnet.safetensors"


def test_equal_pictures_are_no_distance_apart_and_the_distance_is_symmetric(small):
    a, b = torch.rand(2, 2, 3, 16, 16)
    assert torch.equal(small(a, a), torch.zeros(2))
    torch.testing.assert_close(small(a, b), small(b, a))
    assert (small(a, b) > 0).all()


def test_nearer_pictures_are_nearer(small):
    a, noise = torch.rand(4, 3, 16, 16), torch.rand(4, 3, 16, 16)
    assert (small(a, torch.lerp(a, noise, 0.1)) < small(a, noise)).all()


def test_it_is_torchmetrics_on_the_same_weights(weights, monkeypatch):
    from torchmetrics.functional.image import lpips

    network, path = weights
    monkeypatch.setattr(lpips, "_get_tv_model_features", lambda net, pretrained: network.features)
    theirs = lpips._LPIPS(net="alex", pretrained=True, pnet_rand=True, use_dropout=True)
    a, b = torch.rand(2, 3, 3, 64, 64)
    torch.testing.assert_close(Lpips.load(path)(a, b), theirs(a, b, normalize=True).flatten())


def test_its_mean_is_over_seeds(small):
    a, b = torch.rand(2, 4, 3, 16, 16)
    mean = PerceptualDistance(small, range(2))
    mean.update(a[:2], b[:2], [0, 1])
    mean.update(a[2:], b[2:], [0, 1])
    estimate = mean.compute()
    assert estimate.mean == pytest.approx(float(small(a, b).mean()), abs=1e-6)
    assert (estimate.seeds, estimate.images) == (2, 4)


def test_a_pickle_is_refused_and_the_way_out_is_said(tmp_path):
    (tmp_path / "alexnet.pth").write_bytes(b"")
    for name in ("alexnet.pth", "alexnet.safetensors"):
        with pytest.raises(
            ErasureError,
            match=rf"lpips needs a safetensors file .*{name} is none\. Pickles .* save_file",
        ):
            Lpips.load(tmp_path / name)


def test_other_weights_are_refused(tmp_path):
    save_file({"features.0.weight": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(ErasureError, match="does not hold AlexNet's convolutions"):
        Lpips.load(tmp_path / "x.safetensors")


def test_the_fewest_pixels_are_those_that_alexnet_needs():
    network = AlexNet()
    least = AlexNet.LEAST
    assert all(a.isfinite().all() for a in network(torch.rand(1, 3, least, least)))
    with pytest.raises(RuntimeError, match="too small"):
        network.features(torch.rand(1, 3, least - 1, least))
    with pytest.raises(ErasureError, match="at least 31 pixels a side; found 30 x 31"):
        network(torch.rand(1, 3, least - 1, least))
