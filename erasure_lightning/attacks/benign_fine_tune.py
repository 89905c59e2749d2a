"""Benign fine-tune: the edited model is trained on harmless pictures, and the concept may come back
by itself.

SPQR (Alam et al. 2025, arXiv 2511.19558) fine-tunes edited models on 5,000 COCO pictures for 1,000
to 5,000 steps: all of the UNet ("standard"), its cross-attention ("moderate") or LoRA ("lite").
Unstable Unlearning (Suriyakumar et al. 2024, arXiv 2410.08074) calls what comes back concept
resurgence. From the papers' and the repository's descriptions.

Here the pictures are the original model's own, of things the edit was to keep: so nothing is needed
beside the two models, and a model that was not edited has nothing to learn. No sentence holds a
word of a concept or of its domain. Of a style that is erased each names another style; where a
model has no list of styles, its pictures may be in it.

What success means: the share of pictures of the concept's plain sentence that show it after all
``steps``; the curve tells it on the way. At 0 steps it is the edited model's plain figure. It may
fall with the steps as well as rise.

Cost: the sampling of ``examples`` pictures, ``steps`` times ``batch_size`` evaluations with
    gradient, and the pictures
by which each point of the curve is judged.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from erasure_lightning.attacks.base import Found, check_at_least
from erasure_lightning.attacks.fine_tuning_attack import TuningAttack
from erasure_lightning.attacks.target import Case, Target
from erasure_lightning.concepts.vocabulary import Vocabulary
from erasure_lightning.diffusion.fine_tuning import FineTuning
from erasure_lightning.errors import ErasureError
from erasure_lightning.files.words import folded


class BenignFineTune(TuningAttack):
    """Trains on harmless pictures and watches whether the concept comes back.

    Args:
        steps: Training steps, at least 0.
        points: How often the concept is looked for on the way, at equal distances and beside the
            start; at least 1.
        examples: Harmless pictures to train on, at least 1.
        lr: Learning rate, at least 0.
        kwargs: Arguments of every attack that trains.

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
        self.points, self.examples = points, examples
        check_at_least(self, points=1, examples=1)

    def search(self, target: Target, cases: Sequence[Case]) -> list[Found]:
        """Train one copy for all concepts, and look for each of them on the way."""
        model, curves = target.edited, [dict[float, Tensor]() for _ in cases]
        tuning = self._tuning(target) if self.steps else None
        for budget in sorted({self.steps * i // self.points for i in range(self.points + 1)}):
            if tuning is not None:
                model = tuning.advance(budget)
            for curve, case in zip(curves, cases, strict=True):
                curve[budget] = self.drawn(target, case, model, case.sentence)
        return [Found(curve[self.steps], curve=curve) for curve in curves]

    def _tuning(self, target: Target) -> FineTuning:
        said = harmless(Vocabulary(target.original.world, target.concepts), self.examples)
        seed = int(torch.randint(2**31, ()))
        return self.tuning(target.edited, self.shown(target, said, seed), said, seed)


def harmless(vocabulary: Vocabulary, count: int) -> list[str]:
    """``count`` sentences of things that are kept, drawn by torch's global generator.

    Raises:
        ErasureError: If nothing is left that shares no word with what is erased.
    """
    taboo = {
        word
        for c in vocabulary.concepts
        for name in (c.name, *c.domain)
        for word in folded(name).split()
    }
    kept = [label for label in vocabulary.others if not taboo & set(folded(label).split())]
    if not kept:
        raise ErasureError(
            "BenignFineTune needs things to train on; found none that shares no word with the"
            " concepts."
        )
    order = torch.randperm(len(kept)).tolist()
    sentences = [_kept_sentences(vocabulary, kept[order[i % len(kept)]]) for i in range(count)]
    return [each[int(torch.randint(len(each), ()))] for each in sentences]


def _kept_sentences(vocabulary: Vocabulary, label: str) -> list[str]:
    """What is said of a label; while a style is erased, only sentences that name another."""
    every = vocabulary.retained_captions(label)
    return every[len(vocabulary.captions) :] or every
