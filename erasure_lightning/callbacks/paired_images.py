"""`PairedImages`: base of callbacks on images of both models from the same noise."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from erasure_lightning.data.image_plan import ImageRequest
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

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prepare for the images."""
        assert isinstance(pl_module, ErasureModule)
        loader: Any = trainer.test_dataloaders if trainer.testing else trainer.val_dataloaders
        own = [(n, rank(), b.requests) for n, b in enumerate(loader) if not b.is_repeated]
        each = sorted(all_gather_items(own))  # in the order in which they were dealt out in turn
        self.begin(pl_module, [request for *_, requests in each for request in requests])

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Process a batch."""
        if not batch.is_repeated:  # or another rank processes the same images
            self.take(batch.requests, outputs["original"], outputs["edited"])

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Finish after the last batch."""
        assert isinstance(pl_module, ErasureModule)
        self.finish(trainer, pl_module)

    on_validation_start = on_test_start
    on_validation_batch_end = on_test_batch_end
    on_validation_epoch_end = on_test_epoch_end
