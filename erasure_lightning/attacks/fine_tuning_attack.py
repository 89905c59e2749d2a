"""What the attacks share that train an edited model on: whom they train, how, and when a concept
counts as back.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from erasure_lightning.attacks.base import Attack, check_at_least, check_threshold
from erasure_lightning.attacks.target import Case, Target
from erasure_lightning.backbones.base import Backbone
from erasure_lightning.concepts.concept import Phrase
from erasure_lightning.diffusion.fine_tuning import FineTuning, TrainedPart
from erasure_lightning.diffusion.latent_dataset import LatentDataset


class TuningAttack(Attack):
    """An attack that fine-tunes the edited model on pictures.

    Args:
        steps: Training steps, at least 0.
        train: What is trained: a part of the denoiser as in ESD, the text encoder, or everything.
        lr: Learning rate, at least 0.
        batch_size: Pictures a step, at least 1.
        threshold: Share of pictures at which the concept counts as back, 0..1.
        seed: Of everything the attack draws.

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
        self.steps, self.train, self.lr = steps, train, lr
        self.batch_size, self.threshold = batch_size, threshold
        check_at_least(self, steps=0, lr=0, batch_size=1)
        check_threshold(threshold)

    def shown(self, target: Target, said: Sequence[str | Phrase], seed: int) -> LatentDataset:
        """Pictures to train on: what the original draws for these sentences."""
        size = target.trials.size
        return LatentDataset(
            target.original, said, seed, steps=target.steps, guidance=target.guidance, size=size
        )

    def tuning(
        self, model: Backbone, shown: LatentDataset, said: Sequence[str | Phrase], seed: int
    ) -> FineTuning:
        """A copy of a model that is trained on the pictures that something is said of."""
        return FineTuning(
            model, shown, said, train=self.train, lr=self.lr, batch_size=self.batch_size, seed=seed
        )

    @staticmethod
    def drawn(target: Target, case: Case, model: Backbone, sentence: str) -> Tensor:
        """What a model draws for a sentence at a case's seeds, ``(N, 3, H, W)``."""
        return target.draw(model.encode([sentence]), case.seeds, model=model)
