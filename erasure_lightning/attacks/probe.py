"""`Probe`: base of attacks that read what the edited model still holds, with their controls."""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from erasure_lightning.attacks.base import AttackResult, ConceptAttack
from erasure_lightning.attacks.target import AttackCase, AttackTarget
from erasure_lightning.backbones.base import Backbone
from erasure_lightning.diffusion.ddim import StepChange, ddim

#: Images ``(B, 3, H, W)`` in 0..1 that a model generates for a part of a case's seeds.
Attempt = Callable[[Backbone, slice], Tensor]


class Attempts(NamedTuple):
    """A probe of one case.

    Args:
        attempt: Generates the images that are scored.
        baselines: The same without the probe's own means, by the name of the control.
        prompt: The prompt to report, of probes that try several.
    """

    attempt: Attempt
    baselines: Mapping[str, Attempt]
    prompt: str | None = None


class Probe(ConceptAttack):
    """An attack that does not train the edited model, and runs on other models alike.

    The same attempt, with the same images, noise and choices, is made on three models, of which two
    are controls; baselines leave the probe's own means away:

    * ``original``: the model before the edit. Where this fails, the probe has no power, and its
      failure on the edited model is no evidence.
    * ``shuffled``: the edited model with the entries of each weight of its denoiser shuffled, which
      has no knowledge. What succeeds here is in the probe's inputs, not in a memory.
    * ``no prompt`` and the like: the edited model without the words, or the classifier, of the
      probe: how often it generates the concept for what else the probe supplies. Where an image of
      the concept is supplied, and this succeeds and the prompt does not, the edit has turned the
      word away and left the rest.

    Evidence of memory is what success has over ``shuffled``, relative to ``original``. No control
    is a model that learned everything but the concept, which would restore some of an image too:
    where little is missing from an image, success is weak evidence.
    """

    def find(self, target: AttackTarget, case: AttackCase) -> AttackResult:
        """Make the attempt on the edited model and on the controls."""
        attempt, baselines, prompt = self.prepare(target, case)
        shuffled = shuffled_copy(target.edited, int(torch.randint(2**31, ())))
        parts = target.batches(len(case.seeds))

        def images(attempt: Attempt, model: Backbone) -> Tensor:
            with torch.no_grad():
                return torch.cat([attempt(model, part) for part in parts])

        return AttackResult(
            images(attempt, target.edited),
            prompt,
            controls={
                "original": images(attempt, target.original),
                "shuffled": images(attempt, shuffled),
                **{name: images(other, target.edited) for name, other in baselines.items()},
            },
        )

    @abstractmethod
    def prepare(self, target: AttackTarget, case: AttackCase) -> Attempts:
        """The attempt and its baselines, which draw no random numbers."""


def generate_by_ddim(
    target: AttackTarget,
    model: Backbone,
    prompt: str | None,
    x: Tensor,
    times: Tensor,
    change: StepChange | None = None,
) -> Tensor:
    """Latents ``(B, C, h, w)`` that a model generates with the target's guidance.

    Args:
        target: The models under attack.
        model: The model that generates.
        prompt: Its prompt; ``None`` for the unconditional prediction, without guidance.
        x: Noisy latents at the first time, ``(B, C, h, w)``.
        times: Times from noise to clean, ``(S + 1,)``.
        change: Changes every step.
    """
    if prompt is None:
        return ddim(model, model.unconditional(len(x)), x, times, change=change)
    conditioning = model.encode([prompt]).expand(len(x))
    return ddim(model, conditioning, x, times, target.guidance, change)


def best_tries(target: AttackTarget, case: AttackCase, tries: Sequence[Tensor]) -> Tensor:
    """The try of the highest margin for each image.

    Args:
        target: Scores the images.
        case: The concept.
        tries: Images ``(B, 3, H, W)`` of each try.
    """
    margins = torch.stack([target.margin(case, images) for images in tries])
    best = margins.argmax(dim=0)
    return torch.stack([tries[index][image] for image, index in enumerate(best.tolist())])


@torch.no_grad()
def shuffled_copy(backbone: Backbone, seed: int) -> Backbone:
    """A copy whose denoiser has the entries of each weight in random order.

    Args:
        backbone: The model; not modified.
        seed: Seed of the order.
    """
    names = list(backbone.denoiser_parameters())
    shuffled = backbone.frozen_copy(names)
    generator = torch.Generator().manual_seed(seed)
    for name in names:
        weight = shuffled.get_parameter(name)
        order = torch.randperm(weight.numel(), generator=generator).to(weight.device)
        weight.copy_(weight.flatten()[order].view_as(weight))
    return shuffled
