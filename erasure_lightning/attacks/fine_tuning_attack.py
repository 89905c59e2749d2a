"""`FineTuningAttack`: base of attacks that fine-tune the edited model."""

from collections.abc import Sequence
from typing import Any

from erasure_lightning.attacks.base import Attack, check_at_least
from erasure_lightning.backbones.base import Backbone
from erasure_lightning.concepts.concept import Phrase
from erasure_lightning.diffusion.fine_tuning import FineTuning, TrainedPart
from erasure_lightning.diffusion.latent_dataset import LatentDataset
from erasure_lightning.errors import ErasureError


class FineTuningAttack(Attack):
    """An attack that fine-tunes the edited model on images.

    Args:
        steps: Training steps, at least 0.
        train: The trained parameters: a part of the denoiser as in ESD, the text encoder, or all.
        lr: Learning rate, at least 0.
        batch_size: Images a step, at least 1.
        threshold: Share of images at which the concept counts as back, 0..1.
        kwargs: Arguments of `Attack`.

    Raises:
        ErasureError: If a number is out of range.
    """

    def __init__(
        self,
        *,
        steps: int,
        lr: float,
        train: TrainedPart = "all",
        batch_size: int = 8,
        threshold: float = 0.5,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.steps = steps
        self.train = train
        self.lr = lr
        self.batch_size = batch_size
        self.threshold = threshold
        check_at_least(self, steps=0, lr=0, batch_size=1)
        if not 0 <= threshold <= 1:
            raise ErasureError(
                f"{type(self).__name__} needs a threshold of 0 to 1, a share of images; found"
                f" {threshold:g}."
            )

    def fine_tuning(
        self, model: Backbone, images: LatentDataset, prompts: Sequence[str | Phrase], seed: int
    ) -> FineTuning:
        """The fine-tuning of a copy of a model on the first ``len(prompts)`` images.

        Args:
            model: The model to copy.
            images: Latents to train on.
            prompts: The prompt that each image is trained with.
            seed: Seed of the draws of images, noise and times.
        """
        return FineTuning(
            model,
            images,
            prompts,
            train=self.train,
            lr=self.lr,
            batch_size=self.batch_size,
            seed=seed,
        )
