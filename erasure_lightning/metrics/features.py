"""`Features`: a network that sees pictures, out of a folder, for distances between sets of them."""

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


class Features(nn.Module):
    """A frozen vision model of transformers: CLIP, SigLIP, DINOv2, ViT, ResNet, ...

    Args:
        name: How the user named it.
        model: The model.
        preprocessing: What it does to pictures before reading them.
    """

    def __init__(self, name: str, model: nn.Module, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.name = name
        self.model: Any = model.requires_grad_(False).eval()
        self.preprocessing = preprocessing

    @classmethod
    def load(cls, source: str | Path) -> Self:
        """Load a network in float32.

        Args:
            source: A folder as transformers writes it, or a Hub id; only the latter goes to the
                network.

        Raises:
            ErasureError: If nothing is there, the weights are no safetensors, or it is no model for
                pictures.
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
    def forward(self, pictures: Tensor) -> Tensor:
        """Features ``(B, D)`` of pictures ``(B, 3, H, W)`` in 0..1: projected, or pooled where it
        projects nothing.
        """
        read = self.preprocessing(pictures)
        seen = (
            self.model.get_image_features
            if hasattr(self.model, "get_image_features")
            else self.model
        )
        return features_of(seen(pixel_values=read)).flatten(1)

    def fingerprint(self) -> str:
        """A short hash of the weights."""
        return fingerprint(self.model)
