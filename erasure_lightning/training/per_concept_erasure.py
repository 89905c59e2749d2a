"""Base class of methods that train adapters for each concept, and fuse them into weights."""

from abc import abstractmethod
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from erasure_lightning.adapters.per_concept import ConceptAdapters
from erasure_lightning.checks import require
from erasure_lightning.training.edit_state import BACKBONE_PREFIX
from erasure_lightning.training.gradient import GradientErasure
from erasure_lightning.training.latent_sources import NoisyBatch


class PerConceptErasure(GradientErasure):
    """Base of methods that train adapters for each concept and fuse them into the text layers.

    The adapters are not part of the backbone, so that each row of a batch passes those of its own
    concept. An edit is weights at any time: a checkpoint has the fusion of the adapters as they
    are. Adapters of concepts that a batch lacks get no gradient.

    Args:
        rank: Rank of each adapter, at least 1.
        kwargs: Arguments of `GradientErasure`.

    Raises:
        ErasureError: If the rank is below 1.
    """

    has_unused = True
    finalizes_edit = True

    def __init__(self, *, rank: int = 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        require(type(self).__name__, at_least=1, rank=rank)
        self.rank = rank

    @abstractmethod
    def fused(self) -> Tensor:
        """The fused weights of all text layers, stacked, ``(out, D)``."""

    def adapt(self) -> None:
        """Creates the adapters, apart from the backbone."""
        layers = self.backbone.text_layers().values()
        self.adapters = ConceptAdapters(layers, len(self.concepts), self.rank)

    def trainable(self) -> dict[str, nn.Parameter]:
        """The adapters' parameters alone."""
        return {
            f"adapters.{name}": parameter for name, parameter in self.adapters.named_parameters()
        }

    def adapted(self, batch: NoisyBatch) -> AbstractContextManager[None]:
        """Context in which each row of a batch passes the adapters of its concept."""
        return self.adapters.beside(self.backbone.text_layers().values(), batch.indices)

    @torch.no_grad()
    def write_layers(self, weights: Tensor) -> None:
        """Writes stacked weights ``(out, D)`` to the text layers."""
        self.write(self._by_name(weights))

    def _by_name(self, weights: Tensor) -> dict[str, Tensor]:
        layers = weights.to(self.backbone.dtype).split_with_sizes(self.adapters.widths)
        names = [f"{name}.weight" for name in self.backbone.text_layers()]
        return dict(zip(names, layers, strict=True))

    def on_train_end(self) -> None:
        """Fuses the adapters."""
        self.write_layers(self.fused())

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Saves the adapters beside the edit that they fuse to."""
        super().on_save_checkpoint(checkpoint)
        fused = self._by_name(self.fused()).items()
        checkpoint["state_dict"] |= {BACKBONE_PREFIX + name: weight for name, weight in fused}
        checkpoint["adapters"] = dict(self.adapters.state_dict())

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restores the adapters; a finished edit has none."""
        super().on_load_checkpoint(checkpoint)
        self.adapters.load_state_dict(checkpoint.get("adapters", {}), strict=False)
