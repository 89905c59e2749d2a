"""`FeatureExtractor`: a frozen vision model whose features FID and KID compare."""

from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from erasure_lightning.edits.fingerprints import fingerprint
from erasure_lightning.errors import ErasureError
from erasure_lightning.metrics.scorer import (
    UNREADABLE,
    Preprocessing,
    check_source,
    features_of,
    read_model,
)


class FeatureExtractor(nn.Module):
    """A frozen vision model of transformers: CLIP, SigLIP, DINOv2, ViT, ResNet, ...

    Args:
        name: The folder or Hub id that the user gave.
        model: The model.
        preprocessing: The model's preprocessing of images.
    """

    def __init__(self, name: str, model: nn.Module, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.name = name
        self.model: Any = model.requires_grad_(False).eval()
        self.preprocessing = preprocessing

    @classmethod
    def load(cls, source: str | Path) -> Self:
        """Load a model in float32.

        Args:
            source: A folder in the format of transformers, or a Hub id; only the latter needs the
                network.

        Raises:
            ErasureError: If the source does not exist, its weights are no safetensors, or it is no
                vision model.
        """
        name = str(source)
        check_source(name, "network")
        try:
            model, settings = read_model(name)
            return cls(name, model, Preprocessing.read(settings))
        except UNREADABLE as error:
            first = (str(error).splitlines() or [type(error).__name__])[0]
            raise ErasureError(f"The network {name!r} could not be loaded: {first}") from error

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Features ``(B, D)``: projected, or pooled by models without a projection.

        Args:
            images: Images ``(B, 3, H, W)`` in 0..1.
        """
        pixels = self.preprocessing(images)
        extract = getattr(self.model, "get_image_features", self.model)
        return features_of(extract(pixel_values=pixels)).flatten(1)

    def fingerprint(self) -> str:
        """A short hash of the weights."""
        return fingerprint(self.model)
