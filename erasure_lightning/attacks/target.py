"""`AttackTarget`: an edited model under attack, how it samples, and how images are scored."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from erasure_lightning.backbones.base import Backbone
from erasure_lightning.backbones.conditioning import Conditioning
from erasure_lightning.checks import require
from erasure_lightning.concepts.concept import Concept, Phrase
from erasure_lightning.concepts.vocabulary import Vocabulary
from erasure_lightning.concepts.worlds import World
from erasure_lightning.diffusion.finite_images import require_finite_images
from erasure_lightning.diffusion.latent_dataset import LatentDataset, add_noise
from erasure_lightning.diffusion.sampling import final_latents, image_size, rollout
from erasure_lightning.errors import ErasureError
from erasure_lightning.metrics.protocol import Protocol, short_hash
from erasure_lightning.metrics.scorer import Scorer, check_source
from erasure_lightning.metrics.zero_shot import ZeroShotClassifier
from erasure_lightning.seeding import derive_seed

_NO_SCORER = (
    "An attack needs a scorer that recognises the concept; {} brings none. Pass"
    " scorer=FOLDER (command line: --data.scorer FOLDER) of a CLIP or SigLIP, or a Hub id such as"
    " openai/clip-vit-base-patch32."
)


@dataclass(frozen=True)
class AttackSettings:
    """The number of attacks, and how their images are sampled and scored.

    Args:
        seeds: Independent attacks on each concept, at least 2 so that there is an interval.
        images: Images by which each attack is scored, at least 1; from noise unseen by it.
        steps: Sampling steps, at least 1; the world's or the stock pipeline's by default.
        guidance: Scale of classifier-free guidance, at least 0; by default as the steps.
        image_size: Height and width in pixels, at least 1; the model's own by default.
        image_batch_size: Images sampled in one batch, at least 1.
        scorer: Folder or Hub id of a CLIP or SigLIP that classifies the images; the world's own by
            default.

    Raises:
        ErasureError: If a number is out of range.
    """

    seeds: int = 3
    images: int = 4
    steps: int | None = None
    guidance: float | None = None
    image_size: int | None = None
    image_batch_size: int = 32
    scorer: str | None = None

    def __post_init__(self) -> None:
        bounds = {"seeds": 2, "images": 1, "steps": 1, "guidance": 0}
        bounds |= {"image_size": 1, "image_batch_size": 1}
        for name, bound in bounds.items():
            require("AttackSettings", at_least=bound, **{name: getattr(self, name)})


def require_scorer(settings: AttackSettings, world: World | None, model: str) -> str | Path:
    """The folder or Hub id of an attack's scorer: that of its settings, else the world's.

    Args:
        settings: Settings of the attack.
        world: The attacked model's, if it has one.
        model: Its name, for the message.

    Raises:
        ErasureError: If there is none.
    """
    if settings.scorer is not None:
        check_source(settings.scorer)
        return settings.scorer
    if world is None:
        raise ErasureError(_NO_SCORER.format(model))
    return world.scorer


class AttackCase(NamedTuple):
    """One attack on one concept.

    Args:
        concept: The erased concept.
        prompt: The plain prompt for the concept.
        thing: The thing in an erased style that the prompt names; empty for things.
        seed: Number of the independent attack.
        seeds: Seeds of the noise that its images start from.
    """

    concept: Concept
    prompt: str
    thing: str
    seed: int
    seeds: list[int]

    @property
    def template(self) -> str:
        """The prompt with ``{}`` for the name, whose letters other words before it may hold."""
        before, _, after = self.prompt.rpartition(self.concept.name)
        return f"{before}{{}}{after}"


class AttackTarget:
    """An edited model under attack.

    Args:
        edited: The edited model; with the original itself in its place, attacks must succeed.
        original: The model before the edit.
        concepts: The erased concepts.
        settings: The number of attacks, and how images are sampled.
        scorer: Classifies images; by default the scorer that ``settings`` names, else the world's.

    Raises:
        ErasureError: If there is no scorer.
    """

    def __init__(
        self,
        edited: Backbone,
        original: Backbone,
        concepts: Sequence[Concept],
        settings: AttackSettings | None = None,
        scorer: Scorer | None = None,
    ) -> None:
        self.edited = edited
        self.original = original
        self.concepts = list(concepts)
        self.settings = settings = settings or AttackSettings()
        world = original.world
        steps, guidance = original.default_sampling
        self.steps: int = settings.steps or steps
        self.guidance: float = guidance if settings.guidance is None else settings.guidance
        if scorer is None:
            source = require_scorer(settings, world, original.name)
            scorer = Scorer.load(source).to(original.device)
        self.scorer = scorer
        self._classifiers = {
            c.name: ZeroShotClassifier(self.scorer, Vocabulary(world, [c]), ())
            for c in self.concepts
        }

    @property
    def seeds(self) -> range:
        """Numbers of the independent attacks."""
        return range(self.settings.seeds)

    def cases(self, seed: int) -> list[AttackCase]:
        """The cases of one seed, one for each concept; its prompts alternate over seeds."""
        count = self.settings.images
        image_seeds = [seed * count + i for i in range(count)]
        cases = []
        for concept in self.concepts:
            prompts = self._classifiers[concept.name].vocabulary.concept_prompts()
            # Seed 0 takes the second prompt, which has an article.
            prompt, thing = prompts[(seed + 1) % len(prompts)]
            cases.append(AttackCase(concept, prompt, thing, seed, list(image_seeds)))
        return cases

    def templates(self, case: AttackCase) -> list[str]:
        """Templates of the case's concept, with ``{}`` for its words."""
        templates = self._classifiers[case.concept.name].vocabulary.templates(case.concept.kind)
        return [template.replace("{thing}", case.thing) for template in templates]

    def unstyled_prompt(self, case: AttackCase) -> str:
        """The thing of a style's case in no style, with an article; empty for other concepts."""
        captions = self._classifiers[case.concept.name].vocabulary.captions
        return captions[1].format(case.thing) if case.thing else ""

    @torch.no_grad()
    def generate(
        self,
        conditioning: Conditioning,
        seeds: Sequence[int],
        *,
        model: Backbone | None = None,
    ) -> Tensor:
        """Sample images ``(B, 3, H, W)`` in 0..1.

        Args:
            conditioning: The denoiser's input, ``(B, L, D)``, or ``(1, L, D)`` for all images:
                ``encode`` of prompts, ``contextualize`` of input embeddings, or an attack's own.
            seeds: Seeds of the noise, ``B``.
            model: The model to sample from; the edited model by default.
        """
        model = model or self.edited
        conditioning = conditioning.expand(len(seeds))
        parts = self.batches(len(seeds))
        latents = (self._sample(model, conditioning[part], seeds[part]) for part in parts)
        return torch.cat([model.decode(batch) for batch in latents])

    def batches(self, count: int) -> list[slice]:
        """Consecutive parts of ``count`` images, each sampled in one batch."""
        size = self.settings.image_batch_size
        return [slice(i, i + size) for i in range(0, count, size)]

    def _sample(self, model: Backbone, conditioning: Conditioning, seeds: Sequence[int]) -> Tensor:
        """Latents ``(B, C, h, w)`` for conditionings ``(B, L, D)``."""
        size = self.settings.image_size
        steps = rollout(
            model, conditioning, seeds, steps=self.steps, guidance=self.guidance, size=size
        )
        return final_latents(steps)

    @torch.no_grad()
    def examples(self, case: AttackCase, count: int) -> Tensor:
        """Latents ``(count, C, h, w)`` of the concept that the original samples.

        Their noise is not used for the result.
        """
        generator = torch.Generator().manual_seed(derive_seed(case.seed, 9))
        seeds = torch.randint(2**20, 2**31, (count,), generator=generator).tolist()
        plain = self.original.encode([case.prompt]).expand(count)
        batches = [self._sample(self.original, plain[p], seeds[p]) for p in self.batches(count)]
        prompts = [case.prompt] * count
        return require_finite_images(torch.cat(batches), "original", self.original, prompts)

    def dataset(self, prompts: Sequence[str | Phrase], seed: int) -> LatentDataset:
        """Latents that the original generates for prompts, to train on.

        Args:
            prompts: One prompt for each image.
            seed: Seed of the images.
        """
        size = self.settings.image_size
        return LatentDataset(
            self.original, prompts, seed, steps=self.steps, guidance=self.guidance, size=size
        )

    def denoising_loss(self, conditioning: Conditioning, clean: Tensor, t: Tensor) -> Tensor:
        """The edited model's denoising loss on images of the concept, a scalar.

        ``|eps_theta(a_t x_0 + s_t n, t, c) - n|^2``, in the model's own parameterisation, with
        fresh noise ``n``.

        Args:
            conditioning: ``c``, ``(B, L, D)`` or ``(1, L, D)``; gradients reach it.
            clean: Latents ``x_0``, ``(B, C, h, w)``.
            t: Times, ``(B,)``.
        """
        x, t, target = add_noise(self.edited.process, clean, t)
        prediction = self.edited.denoise(x, t, conditioning.expand(len(x)))
        return mse_loss(prediction, target)

    @torch.no_grad()
    def margin(self, case: AttackCase, images: Tensor) -> Tensor:
        """Margin of images' cosine to the case's concept over that to all else, ``(B,)``.

        Above 0 an image shows the concept; a style on any thing, as words need not name the case's.

        Args:
            case: The concept.
            images: Images ``(B, 3, H, W)`` in 0..1.
        """
        classifier = self._classifiers[case.concept.name]
        candidates = classifier.styles if case.thing else classifier.candidates("efficacy", "")
        cosines = self.scorer.images(images) @ candidates.labels.T
        concept = cosines[:, candidates.right].amax(dim=1)
        return concept - cosines[:, ~candidates.right].amax(dim=1)

    def prompt_margin(self, case: AttackCase, prompt: str) -> float:
        """The `margin` of one image of a prompt, from noise that is not used for the result."""
        images = self.generate(self.edited.encode([prompt]), [derive_seed(case.seed, 8) % 2**31])
        return self.margin(case, images).item()

    def success_rate(self, case: AttackCase, images: Tensor) -> float:
        """Share of the images ``(B, 3, H, W)`` that show the concept, 0..1."""
        return (self.margin(case, images) > 0).float().mean().item()

    @cached_property
    def protocol(self) -> Protocol:
        """How images are sampled and scored."""
        cases = [case for seed in self.seeds for case in self.cases(seed)]
        packages = ("erasure-lightning", "torch", "diffusers", "transformers")
        return Protocol(
            prompts={
                c.name: sorted({case.prompt for case in cases if case.concept == c})
                for c in self.concepts
            },
            seeds=sorted({seed for case in cases for seed in case.seeds}),
            steps=self.steps,
            guidance=self.guidance,
            size=image_size(self.original, self.settings.image_size)[1],
            sampler=self.original.sampler_name,
            scorer_fingerprint=self.scorer.fingerprint(),
            backbone_fingerprint=self.original.fingerprint(),
            vocabulary=short_hash([self._classifiers[c.name].labels for c in self.concepts]),
            backbone=self.original.name,
            scorer=self.scorer.name,
            versions={name: version(name) for name in packages},
            sampler_settings=self.original.sampler_settings,
        )
