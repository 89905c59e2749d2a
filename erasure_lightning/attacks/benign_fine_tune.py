"""Benign fine-tuning: the edited model is trained on unrelated images, and the concept may return.

SPQR (Alam et al. 2025, arXiv 2511.19558) fine-tunes edited models on 5,000 COCO images for 1,000
to 5,000 steps: all of the UNet ("standard"), its cross-attention ("moderate") or LoRA ("lite").
Unstable Unlearning (Suriyakumar et al. 2024, arXiv 2410.08074) calls the effect concept
resurgence. Implemented from the papers' and the repository's descriptions.

Here the original model generates the images, of labels that the edit should retain. So no data is
needed beside the two models, and an unedited model has no new knowledge to gain. No prompt
contains a word of a concept or of its domain. While a style is erased, each prompt names another
style; where a model has no list of styles, its images may be in the erased one.

Success is the share of images of the concept's plain prompt that show it after all ``steps``; the
curve gives the share on the way. At 0 steps it equals the edited model's plain figure. It may fall
with the steps as well as rise.

Cost: the sampling of ``examples`` images, ``steps`` times ``batch_size`` evaluations with gradient,
and the images by which each point of the curve is scored.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from erasure_lightning.attacks.base import AttackResult, check_at_least
from erasure_lightning.attacks.fine_tuning_attack import FineTuningAttack
from erasure_lightning.attacks.retained_prompts import draw_retained_prompts
from erasure_lightning.attacks.target import AttackCase, AttackTarget
from erasure_lightning.concepts.vocabulary import Vocabulary
from erasure_lightning.diffusion.fine_tuning import FineTuning


class BenignFineTune(FineTuningAttack):
    """Fine-tunes on unrelated images and measures whether the concept returns.

    Args:
        steps: Training steps, at least 0.
        points: Number of evaluations during training, equally spaced and in addition to the one
            before it; at least 1.
        examples: Unrelated images to train on, at least 1.
        lr: Learning rate, at least 0.
        kwargs: Arguments of `FineTuningAttack`.

    Raises:
        ErasureError: If a number is out of range.
    """

    axis = "steps of harmless training"

    def __init__(
        self,
        *,
        steps: int = 100,
        points: int = 4,
        examples: int = 24,
        lr: float = 3e-4,
        **kwargs: Any,
    ) -> None:
        super().__init__(steps=steps, lr=lr, **kwargs)
        self.points = points
        self.examples = examples
        check_at_least(self, points=1, examples=1)

    def search(self, target: AttackTarget, cases: Sequence[AttackCase]) -> list[AttackResult]:
        """Train one copy for all concepts, and evaluate each of them during training."""
        model = target.edited
        curves = [dict[float, Tensor]() for _ in cases]
        fine_tuning = self._fine_tuning(target) if self.steps else None
        for budget in sorted({self.steps * i // self.points for i in range(self.points + 1)}):
            if fine_tuning is not None:
                model = fine_tuning.advance(budget)
            for curve, case in zip(curves, cases, strict=True):
                prompt = model.encode([case.prompt])
                curve[budget] = target.generate(prompt, case.seeds, model=model)
        return [AttackResult(curve[self.steps], curve=curve) for curve in curves]

    def _fine_tuning(self, target: AttackTarget) -> FineTuning:
        vocabulary = Vocabulary(target.original.world, target.concepts)
        prompts = draw_retained_prompts(vocabulary, self.examples)
        seed = int(torch.randint(2**31, ()))
        return self.fine_tuning(target.edited, target.dataset(prompts, seed), prompts, seed)
