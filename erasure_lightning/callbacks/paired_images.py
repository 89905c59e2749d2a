"""`PairedImages`: base of callbacks on images of both models from the same noise."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from erasure_lightning.data.image_plan import ImageBatch, ImageRequest
from erasure_lightning.distributed.collectives import all_gather_items, rank
from erasure_lightning.training.base import ErasureModule


class PairedImages(Callback, ABC):
    """Receives the images of the original and the edited model in ``test`` and ``validate``."""

    @abstractmethod
    def begin(self, module: ErasureModule, requests: Sequence[ImageRequest]) -> None:
        """Prepare for the images; ``requests`` are those of all ranks."""

    @abstractmethod
    def take(self, requests: Sequence[ImageRequest], original: Tensor, edited: Tensor) -> None:
        """Process a batch of this rank.

        Args:
            requests: The ``B`` requests.
            original: The original model's images, ``(B, 3, H, W)`` in 0..1.
            edited: The edited model's images, alike.
        """

    @abstractmethod
    def finish(self, trainer: Trainer, module: ErasureModule) -> None:
        """Finish after the last batch; called on every rank."""

    def _begin(self, module: LightningModule, loader: Any) -> None:
        assert isinstance(module, ErasureModule)
        own = [(n, rank(), b.requests) for n, b in enumerate(loader) if not b.is_repeated]
        each = sorted(all_gather_items(own))  # in the order in which they were dealt out in turn
        self.begin(module, [request for *_, requests in each for request in requests])

    def _take(self, batch: ImageBatch, images: Mapping[str, Tensor]) -> None:
        if not batch.is_repeated:  # or another rank processes the same images
            self.take(batch.requests, images["original"], images["edited"])

    def _finish(self, trainer: Trainer, module: LightningModule) -> None:
        assert isinstance(module, ErasureModule)
        self.finish(trainer, module)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prepare for the images."""
        self._begin(pl_module, trainer.test_dataloaders)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prepare for the images."""
        self._begin(pl_module, trainer.val_dataloaders)

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: int
    ) -> None:
        """Process a batch."""
        self._take(batch, outputs)

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: int
    ) -> None:
        """Process a batch."""
        self._take(batch, outputs)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Finish after the last batch."""
        self._finish(trainer, pl_module)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Finish after the last batch."""
        self._finish(trainer, pl_module)
