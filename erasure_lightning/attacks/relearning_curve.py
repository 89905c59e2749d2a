"""Relearning curve: how many pictures of a concept bring it back.

Copies of the edited model are fine-tuned on 0, 1, 2, 4, ... pictures of the concept that the
original draws, under the concept's own sentences, each for the same number of steps: what Erased or
Dormant (Liu and Zhang 2025, arXiv 2505.16174) calls instance personalisation, drawn as a curve.
From the paper's description; the curve is ours.

What success means: the share of pictures of the concept's plain sentence, at noise the training did
not see, that show it. This alone does not tell remembering from learning anew, for any word can be
taught. So the control ``new word`` is told with it: the original model, taught the most of these
pictures under a word that means nothing to it. Evidence of memory is what success has over it; on
the emoji world that is little (0.75 to 1.0 against 0.75 for three methods), for its denoiser takes
up any word within ten steps. More examples are the fewer ones and some more, and all copies see the
same times and noise, so that a curve's points differ by the examples alone.

Cost of a point, and of the control: ``steps`` times ``batch_size`` evaluations with gradient, and
its pictures. The examples are drawn once.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from erasure_lightning.attacks.base import ConceptAttack, Found
from erasure_lightning.attacks.fine_tuning_attack import TuningAttack
from erasure_lightning.attacks.target import Case, Target
from erasure_lightning.backbones.base import Backbone
from erasure_lightning.concepts.concept import Phrase, fill_template
from erasure_lightning.diffusion.latent_dataset import LatentDataset
from erasure_lightning.errors import ErasureError

#: DreamBooth's (Ruiz et al. 2022, arXiv 2208.12242): rare where models learn from, so that it means
#: next to nothing.
NEW_WORD = "sks"


class RelearningCurve(TuningAttack, ConceptAttack):
    """Fine-tunes on a few pictures of the concept and tells how many bring it back.

    Args:
        examples: How many pictures of the concept, rising, each at least 0; success is told of the
            last.
        steps: Training steps with each number of them, at least 0.
        lr: Learning rate, at least 0.
        kwargs: Arguments of every attack that trains.

    Raises:
        ErasureError: If a number is out of range, or the examples do not rise.
    """

    axis = "examples of the concept"

    def __init__(
        self,
        *,
        examples: Sequence[int] = (0, 1, 2, 4, 8),
        steps: int = 10,
        lr: float = 1e-4,
        **kwargs: Any,
    ) -> None:
        super().__init__(steps=steps, lr=lr, **kwargs)
        if not examples or min(examples) < 0 or sorted(set(examples)) != list(examples):
            raise ErasureError(
                "RelearningCurve needs rising examples of at least 0, such as [0, 1, 2, 4]; found"
                f" {list(examples)}."
            )
        self.examples = list(examples)

    def find(self, target: Target, case: Case) -> Found:
        """Relearn from each number of examples, starting from the edited model each time."""
        most, name = self.examples[-1], case.concept.name
        sentences = target.sentences(case)
        templates = [sentences[int(torch.randint(len(sentences), ()))] for _ in range(most)]
        seed = int(torch.randint(2**31, ()))
        said = [fill_template(template, name) for template in templates]
        shown = self.shown(target, said, seed) if most else None
        curve: dict[float, Tensor] = {
            count: self.drawn(
                target, case, self._taught(target.edited, shown, said[:count], seed), case.sentence
            )
            for count in self.examples
        }
        pupil = self._taught(
            target.original,
            shown,
            [fill_template(template, NEW_WORD) for template in templates],
            seed,
        )
        control = self.drawn(target, case, pupil, case.sentence.replace(name, NEW_WORD))
        return Found(curve[most], curve=curve, controls={"new word": control})

    def _taught(
        self, model: Backbone, shown: LatentDataset | None, said: Sequence[Phrase], seed: int
    ) -> Backbone:
        """A copy that has seen as many of the pictures as something is said of; the model itself
        without any.
        """
        if shown is None or not said:
            return model
        return self.tuning(model, shown, said, seed).advance(self.steps)
