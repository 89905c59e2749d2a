"""Relearning curve: the number of images of a concept that brings it back.

Copies of the edited model are fine-tuned on 0, 1, 2, 4, ... images of the concept that the original
generates, under the concept's own prompts, each for the same number of steps. Erased or Dormant
(Liu and Zhang 2025, arXiv 2505.16174) calls it instance personalisation; the curve over the number
of images is ours. Implemented from the paper's description.

Success is the share of images of the concept's plain prompt, at noise unseen in training, that
show it. It does not distinguish remembering from new learning, since any word can be taught. So
the control ``new word`` is reported with it: the original model, trained on all of these images
under a word without a meaning. Evidence of memory is what success has over it; on the emoji world
that is little (0.75 to 1.0 against 0.75 for three methods), for its denoiser learns any word within
ten steps. Larger sets of examples contain the smaller ones, and all copies are trained at the same
times and noise, so that a curve's points differ by the examples alone.

Cost of a point, and of the control: ``steps`` times ``batch_size`` evaluations with gradient, and
its images. The examples are generated once.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from erasure_lightning.attacks.base import AttackResult, ConceptAttack
from erasure_lightning.attacks.fine_tuning_attack import FineTuningAttack
from erasure_lightning.attacks.target import AttackCase, AttackTarget
from erasure_lightning.backbones.base import Backbone
from erasure_lightning.concepts.concept import Phrase, fill_template
from erasure_lightning.diffusion.latent_dataset import LatentDataset
from erasure_lightning.errors import ErasureError

#: Word of the control; DreamBooth's rare token (Ruiz et al. 2022, arXiv 2208.12242).
RARE_WORD = "sks"


class RelearningCurve(FineTuningAttack, ConceptAttack):
    """Fine-tunes on a few images of the concept and reports how many bring it back.

    Args:
        examples: Numbers of images of the concept, rising, each at least 0; the success of the
            attack is that of the last.
        steps: Training steps for each number, at least 0.
        lr: Learning rate, at least 0.
        kwargs: Arguments of `FineTuningAttack`.

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
        if not _is_rising(examples):
            raise ErasureError(
                "RelearningCurve needs rising examples of at least 0, such as [0, 1, 2, 4]; found"
                f" {examples!r}."
            )
        self.examples = list(examples)

    def find(self, target: AttackTarget, case: AttackCase) -> AttackResult:
        """Fine-tune a copy of the edited model on each number of examples; then the control."""
        most = self.examples[-1]
        name = case.concept.name
        every = target.templates(case)
        templates = [every[int(torch.randint(len(every), ()))] for _ in range(most)]
        seed = int(torch.randint(2**31, ()))
        prompts = [fill_template(template, name) for template in templates]
        images = target.dataset(prompts, seed) if most else None
        curve: dict[float, Tensor] = {}
        for count in self.examples:
            model = self._fine_tuned(target.edited, images, prompts[:count], seed)
            prompt = model.encode([case.prompt])
            curve[count] = target.generate(prompt, case.seeds, model=model)
        control_prompts = [fill_template(template, RARE_WORD) for template in templates]
        control = self._fine_tuned(target.original, images, control_prompts, seed)
        control_prompt = control.encode([fill_template(case.template, RARE_WORD).text])
        control_images = target.generate(control_prompt, case.seeds, model=control)
        return AttackResult(curve[most], curve=curve, controls={"new word": control_images})

    def _fine_tuned(
        self, model: Backbone, images: LatentDataset | None, prompts: Sequence[Phrase], seed: int
    ) -> Backbone:
        """A copy trained on the first ``len(prompts)`` images; the model itself without any."""
        if images is None or not prompts:
            return model
        return self.fine_tuning(model, images, prompts, seed).advance(self.steps)


def _is_rising(examples: object) -> bool:
    """Whether it is a list of rising whole numbers of at least 0."""
    if not isinstance(examples, list | tuple) or not examples:
        return False
    if not all(isinstance(count, int) for count in examples):
        return False
    return min(examples) >= 0 and sorted(set(examples)) == list(examples)
