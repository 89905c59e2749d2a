"""`PromptVariants`: base of probes by other spellings and words of a concept."""

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from erasure_lightning.attacks.probe import Attempts, Probe
from erasure_lightning.attacks.target import AttackCase, AttackTarget
from erasure_lightning.backbones.base import Backbone
from erasure_lightning.concepts.concept import fill_template


class PromptVariants(Probe):
    """A probe by the plain prompt with other words in place of the concept's name.

    Success is the mean share of images over all prompts; the prompt that is reported, and whose
    image is in the grid, is that of the highest margin on the edited model, by an image of its own.
    """

    def prepare(self, target: AttackTarget, case: AttackCase) -> Attempts:
        """Generate with every prompt; the baseline generates without one."""
        variants = [fill_template(case.template, words).text for words in self.words(case)]
        prompts = sorted(variants, key=lambda p: target.prompt_margin(case, p), reverse=True)

        def generate(model: Backbone, rows: slice) -> Tensor:
            seeds = case.seeds[rows]
            return torch.cat(
                [target.generate(model.encode([p]), seeds, model=model) for p in prompts]
            )

        def generate_unconditionally(model: Backbone, rows: slice) -> Tensor:
            return target.generate(model.unconditional(), case.seeds[rows], model=model)

        return Attempts(generate, {"no prompt": generate_unconditionally}, prompts[0])

    @abstractmethod
    def words(self, case: AttackCase) -> Sequence[str]:
        """Words in place of the concept's name, at least one."""
