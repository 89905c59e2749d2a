"""`FineTuningAttack`: base of attacks that fine-tune the edited model."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from erasure_lightning.attacks.base import Attack, check_at_least
from erasure_lightning.attacks.target import AttackCase, AttackTarget
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

    def training_images(
        self, target: AttackTarget, prompts: Sequence[str | Phrase], seed: int
    ) -> LatentDataset:
        """Latents that the original model generates for the prompts.

        Args:
            target: The target of the attack.
            prompts: One prompt for each image.
            seed: Seed of the images.
        """
        return LatentDataset(
            target.original,
            prompts,
            seed,
            steps=target.steps,
            guidance=target.guidance,
            size=target.settings.image_size,
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

    @staticmethod
    def generate(target: AttackTarget, case: AttackCase, model: Backbone, prompt: str) -> Tensor:
        """Images that a model generates for a prompt, ``(N, 3, H, W)`` in 0..1.

        Args:
            target: The target of the attack, which determines steps, guidance and size.
            case: The case whose seeds are used.
            model: The model that generates.
            prompt: The prompt.
        """
        return target.draw(model.encode([prompt]), case.seeds, model=model)
