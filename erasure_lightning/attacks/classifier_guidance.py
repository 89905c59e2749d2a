"""Classifier guidance: a classifier of noisy latents steers the edited model without any words.

A probe of When Are Concepts Erased (Lu et al. 2025, arXiv 2505.17013, NeurIPS). Of what the edited
model generates without a prompt, a classifier ``p(concept | x_t)`` selects the concept by

    ``eps' = eps_theta(x_t, t) - scale s_t grad_x log p(concept | x_t)``

(Dhariwal and Nichol, arXiv 2105.05233), at several scales; the image of the highest margin counts.
A model that has lost the concept generates no image of it to select.

Verified in code (kevinlu4588/WhenAreConceptsErased@9a03e07, ``classifier_guidance/``,
``src/probes/standard_prompt_probe.py``): scales 25, 32, ... 193, 50 steps, the best image by a
ResNet-50; the classifier is `LatentClassifier`, of ImageNet's images as latents, some 1,300 of the
concept and 5,000 others, 70 epochs. There the concept's prompt guides too, at 7.5, though its
notebook says that text is bypassed.

Different: no prompt; the original generates the images that the classifier learns from (of labels
that the edit should retain, for the others), so that no data is needed; DDIM, so that the noise
process of every family serves; no gradient where latents are pure noise, without any image.

The scorer is not the classifier that guides, since its own gradient would deceive it. Strong
guidance may deceive it too, and of many scales one succeeds more often by chance. The controls
(`Probe`) show how often: the shuffled denoiser what the gradient alone generates, ``no classifier``
what appears without it. On the emoji world, from scale 50 on, the shuffled denoiser generates
blurred cigarettes that the scorer does not recognise.

Cost for each concept and seed: the sampling of the examples and the training of the classifier, and
for each image three times its sampling, once for each scale.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from erasure_lightning.attacks.base import check_at_least, check_each_at_least
from erasure_lightning.attacks.probe import Attempts, Probe, best_tries, generate_by_ddim
from erasure_lightning.attacks.retained_prompts import draw_retained_prompts
from erasure_lightning.attacks.target import AttackCase, AttackTarget
from erasure_lightning.backbones.base import Backbone
from erasure_lightning.backbones.process import signal_and_noise
from erasure_lightning.concepts.vocabulary import Vocabulary
from erasure_lightning.diffusion.ddim import DDIMStep, StepChange, ddim_times, is_pure_noise
from erasure_lightning.diffusion.latent_classifier import LatentClassifier, train_latent_classifier


class ClassifierGuidance(Probe):
    """Steers the edited model to the concept by a classifier of noisy latents, without words.

    Args:
        scales: Scales of the classifier's gradient, each at least 0.
        examples: Images of the concept that the classifier learns from, at least 1.
        others: Images of what the edit should retain, at least 1.
        epochs: Passes of the classifier over all images, at least 1.
        seed: Seed of everything the attack draws at random.

    Raises:
        ErasureError: If a number is out of range, or there are no scales.
    """

    def __init__(
        self,
        *,
        scales: Sequence[float] = tuple(range(25, 194, 7)),
        examples: int = 1300,
        others: int = 5000,
        epochs: int = 70,
        seed: int = 0,
    ) -> None:
        super().__init__(seed=seed)
        self.scales = list(scales)
        self.examples = examples
        self.others = others
        self.epochs = epochs
        check_each_at_least(self, scales=0)
        check_at_least(self, examples=1, others=1, epochs=1)

    def prepare(self, target: AttackTarget, case: AttackCase) -> Attempts:
        """Train the classifier; the baseline samples without it."""
        classifier = self._classifier(target, case)
        noise = target.edited.noise(case.seeds, target.settings.image_size)
        times = ddim_times(target.edited, target.steps, target.settings.image_size)

        def sample(scales: Sequence[float], model: Backbone, rows: slice) -> Tensor:
            tries = []
            for scale in scales:
                change = guide(classifier, scale)
                latents = generate_by_ddim(target, model, None, noise[rows], times, change)
                tries.append(model.decode(latents))
            return best_tries(target, case, tries)

        return Attempts(partial(sample, self.scales), {"no classifier": partial(sample, [0.0])})

    def _classifier(self, target: AttackTarget, case: AttackCase) -> LatentClassifier:
        vocabulary = Vocabulary(target.original.world, target.concepts)
        prompts = draw_retained_prompts(vocabulary, self.others)
        others = target.dataset(prompts, int(torch.randint(2**31, ())))
        concept = target.examples(case, self.examples)
        process = target.original.process
        return train_latent_classifier(process, concept, others.latents, epochs=self.epochs)


def guide(classifier: LatentClassifier, scale: float) -> StepChange:
    """The change of steps towards what a classifier recognises.

    Args:
        classifier: The classifier of the same latents.
        scale: Scale of its gradient; 0 changes no step.
    """
    process = classifier.process

    def change(step: DDIMStep) -> tuple[Tensor, Tensor]:
        if not scale or is_pure_noise(process, step.t):
            return step.clean, step.noise
        _, deviation = signal_and_noise(process, step.t)
        gradient = classifier.gradient(step.x, step.t).to(step.noise)
        noise = step.noise - scale * deviation.to(step.noise) * gradient
        return process.remove(step.x, noise, step.t), noise

    return change
