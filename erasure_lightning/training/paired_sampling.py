"""`PairedSampling`: images of a model before and after an edit, from equal noise."""

from collections.abc import Sequence
from functools import partial
from typing import Any, cast

from lightning import LightningModule
from torch import Tensor

from erasure_lightning.backbones.base import Backbone
from erasure_lightning.concepts.concept import Concept
from erasure_lightning.data.image_cache import cached_images
from erasure_lightning.data.image_plan import ImageBatch
from erasure_lightning.training.base_edits import earlier_concepts
from erasure_lightning.training.batch_sampling import finite_images


class PairedSampling(LightningModule):
    """Base of modules that sample images of prompts from the unedited and the edited model."""

    concepts: list[Concept]
    #: The edited model, and the frozen one that training starts from; set by `configure_model`.
    backbone: Backbone
    original: Backbone
    #: Hash of the weights of `original`.
    fingerprint = ""
    #: The edits that `original` has, the lowest first; a tuple, so that no two modules share it.
    base_edits: Sequence[dict[str, Any]] = ()
    _unedited_print = ""
    #: Folder that keeps the unedited model's images from one run to the next.
    originals: str | None = None

    @property
    def unedited(self) -> Backbone:
        """The model without any edit: `original`, unless that has edits itself."""
        return cast(Backbone, self._modules.get("_unedited", self.original))

    @property
    def unedited_fingerprint(self) -> str:
        """Hash of the weights of `unedited`."""
        return self._unedited_print or self.fingerprint

    @property
    def earlier(self) -> list[Concept]:
        """Concepts that edits beneath this one erased."""
        return earlier_concepts(self.base_edits, self.concepts)

    def test_step(self, batch: ImageBatch, batch_idx: int) -> dict[str, Tensor]:
        """Sample images of prompts from the unedited and the edited model, from equal noise.

        Returns:
            Images ``(B, 3, H, W)`` in 0..1, by ``original`` and ``edited``.

        Raises:
            ErasureError: If an image holds NaN or infinity.
        """
        unedited = self.unedited
        batch = batch._replace(size=batch.size or unedited.size)  # the cache tells sizes apart
        model = (self.unedited_fingerprint, unedited.sampling_fingerprint, self.trainer.precision)
        original = cached_images(
            self.originals,
            " ".join(model),
            batch,
            partial(finite_images, unedited, batch, "original"),
            unedited.any_rank,
        )
        edited = finite_images(self.backbone, batch, "edited")
        return {"original": original.to(self.device), "edited": edited}

    #: The same on the smaller plan of ``validate``, and on a user's prompts.
    validation_step = predict_step = test_step
