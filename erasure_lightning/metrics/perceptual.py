"""LPIPS, the perceptual distance of two images (Zhang et al. 2018, arXiv 1801.03924).

torchmetrics builds its network through torchvision, takes no other, and downloads pickled weights.
"""

from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, Self, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from erasure_lightning.edits.fingerprints import fingerprint
from erasure_lightning.errors import ErasureError
from erasure_lightning.metrics.seed_statistics import SeedMean

#: Mean and standard deviation by which images in -1..1 are normalized.
_SHIFT = (-0.030, -0.088, -0.188)
_SCALE = (0.458, 0.448, 0.450)

#: Command that writes the file of weights, where torchvision is installed.
_EXPORT = (
    'python -c "from torchvision.models import alexnet; from safetensors.torch import save_file; '
    "save_file(alexnet(weights='IMAGENET1K_V1').features.state_dict(), 'alexnet.safetensors')\""
)


class AlexNet(nn.Module):
    """The five convolutions of AlexNet with torchvision's names."""

    #: Layers whose activations are compared.
    TAPS = (1, 4, 7, 9, 11)

    #: Fewest pixels of a side, of which the last pooling still has three.
    LEAST = 31

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *(nn.Conv2d(3, 64, 11, stride=4, padding=2), nn.ReLU(), nn.MaxPool2d(3, stride=2)),
            *(nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, stride=2)),
            *(nn.Conv2d(192, 384, 3, padding=1), nn.ReLU()),
            *(nn.Conv2d(384, 256, 3, padding=1), nn.ReLU()),
            *(nn.Conv2d(256, 256, 3, padding=1), nn.ReLU()),
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """Activations ``(B, C, h, w)`` of each layer of `TAPS`.

        Raises:
            ErasureError: If a side has less than `LEAST` pixels.
        """
        if min(x.shape[-2:]) < self.LEAST:
            raise ErasureError(
                f"lpips needs images of at least {self.LEAST} pixels a side; found"
                f" {x.shape[-2]} x {x.shape[-1]}."
            )
        activations = []
        for place, layer in enumerate(self.features):
            x = layer(x)
            activations += [x] if place in self.TAPS else []
        return activations


class Lpips(nn.Module):
    """Learned perceptual image patch similarity.

    ``sum over layers of mean over positions of sum over channels of w (y - y')^2``, where the
    activations ``y`` have unit length at each position. Equal to
    ``torchmetrics.functional.image.lpips`` on the same weights, which a test compares.

    Args:
        network: Maps images to a list of activations ``(B, C, h, w)``.
        weights: Weights of each layer's channels, ``(C,)``.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, network: nn.Module, weights: Sequence[Tensor]) -> None:
        super().__init__()
        self.network = network.requires_grad_(False).eval()
        for place, weight in enumerate(weights):
            self.register_buffer(f"weight{place}", weight)
        self.register_buffer("shift", torch.tensor(_SHIFT).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor(_SCALE).view(1, 3, 1, 1))

    @classmethod
    def load(cls, source: str | Path) -> Self:
        """LPIPS with AlexNet's convolutions from a file and torchmetrics' channel weights.

        Args:
            source: A safetensors file with torchvision's names (``features.0.weight`` or
                ``0.weight``, ...).

        Raises:
            ErasureError: If there is no such file, or it holds other weights.
        """
        path = Path(source)
        if path.suffix != ".safetensors" or not path.is_file():
            raise ErasureError(
                f"lpips needs a safetensors file with AlexNet's weights; {path} is none. Pickles"
                f" can run code and are not read; where torchvision is: {_EXPORT}"
            )
        try:
            tensors = {
                name.removeprefix("features."): value for name, value in load_file(path).items()
            }
            network = AlexNet()
            network.features.load_state_dict(
                {k: v for k, v in tensors.items() if not k.startswith("classifier")}
            )
        except (SafetensorError, RuntimeError) as error:
            raise ErasureError(
                f"{path} does not hold AlexNet's convolutions; where torchvision is: {_EXPORT}"
            ) from error
        heads = files("torchmetrics") / "functional" / "image" / "lpips_models" / "alex.pth"
        with heads.open("rb") as file:
            weights = torch.load(cast(Any, file), map_location="cpu", weights_only=True)
        return cls(
            network, [weights[f"lin{i}.model.1.weight"].flatten() for i in range(len(AlexNet.TAPS))]
        )

    def forward(self, ours: Tensor, theirs: Tensor) -> Tensor:
        """Distances ``(B,)`` of image pairs.

        Args:
            ours: Images ``(B, 3, H, W)`` in 0..1, large enough for the network.
            theirs: Images of the same shape.
        """
        activations = [self.network((2 * x - 1 - self.shift) / self.scale) for x in (ours, theirs)]
        return torch.stack(
            [
                torch.einsum(
                    "c,bchw->bhw", getattr(self, f"weight{i}"), (_unit(a) - _unit(b)).square()
                ).mean((1, 2))
                for i, (a, b) in enumerate(zip(*activations, strict=True))
            ]
        ).sum(dim=0)

    def fingerprint(self) -> str:
        """A short hash of network and weights."""
        return fingerprint(self)


def _unit(x: Tensor) -> Tensor:
    """Activations whose channels have unit length at each position."""
    return x / (x.square().sum(dim=1, keepdim=True) + 1e-8).sqrt()


class PerceptualDistance(SeedMean):
    """Mean perceptual distance of image pairs.

    Args:
        distance: Maps two batches ``(B, 3, H, W)`` in 0..1 to ``(B,)``.
        seeds: As for `SeedMean`.
    """

    def __init__(self, distance: Callable[[Tensor, Tensor], Tensor], seeds: Sequence[int]) -> None:
        super().__init__(seeds, most=float("inf"))
        self.distance = distance

    @torch.no_grad()
    def update(self, ours: Tensor, theirs: Tensor, seeds: Sequence[int]) -> None:  # type: ignore[override]
        """Add pairs, ``(B, 3, H, W)`` each."""
        super().update(self.distance(ours, theirs), seeds)
