"""`Target`: a model under attack, how it is asked, and who says whether the concept came back."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from erasure_lightning.backbones.base import Backbone
from erasure_lightning.backbones.conditioning import Conditioning
from erasure_lightning.checks import require
from erasure_lightning.concepts.concept import Concept
from erasure_lightning.concepts.vocabulary import Vocabulary
from erasure_lightning.diffusion.finite_images import require_finite_images
from erasure_lightning.diffusion.latent_dataset import add_noise
from erasure_lightning.diffusion.sampling import final_latents, rollout
from erasure_lightning.errors import ErasureError
from erasure_lightning.metrics.protocol import Protocol, short_hash
from erasure_lightning.metrics.scorer import Scorer
from erasure_lightning.metrics.zero_shot import ZeroShotClassifier
from erasure_lightning.seeding import derive_seed

NO_SCORER = (
    "An attack needs a scorer that tells whether the concept came back; {} brings none. Give it"
    " CLIP or SigLIP: --data.scorer=FOLDER (or a Hub id: openai/clip-vit-base-patch32)."
)


@dataclass(frozen=True)
class Trials:
    """How often an attack is tried, and how its pictures are drawn.

    Args:
        seeds: Independent attacks on each concept, at least 2 so that there is an interval.
        pictures: Pictures by which each is judged, at least 1; the attack has not seen their noise.
        steps: Sampling steps, at least 1; the world's by default, else 50.
        guidance: Scale of classifier-free guidance, at least 0; the world's by default, else 7.5.
        size: Height and width in pixels; the model's own by default.
        draw_size: Pictures drawn side by side.
        scorer: Folder or Hub id of a CLIP or SigLIP that tells what a picture shows; the world's
            own by default.

    Raises:
        ErasureError: If a number is out of range.
    """

    seeds: int = 3
    pictures: int = 4
    steps: int | None = None
    guidance: float | None = None
    size: int | None = None
    draw_size: int = 32
    scorer: str | None = None

    def __post_init__(self) -> None:
        for name, least in {
            "seeds": 2,
            "pictures": 1,
            "draw_size": 1,
            "steps": 1,
            "size": 1,
            "guidance": 0,
        }.items():
            require("An attack", at_least=least, **{f"data.{name}": getattr(self, name)})


class Case(NamedTuple):
    """One attack on one concept.

    Args:
        concept: What is to come back.
        sentence: The plain prompt that asked for it before the edit.
        thing: What an erased style is put on; empty for things.
        seed: Which of the independent attacks it is.
        seeds: Of the noise that its pictures start from.
    """

    concept: Concept
    sentence: str
    thing: str
    seed: int
    seeds: list[int]


class Target:
    """An edited model under attack.

    Args:
        edited: The model that was made to forget; the original itself is a target on which attacks
            must succeed.
        original: The model it was made from.
        concepts: What was erased.
        trials: How often it is attacked, and how pictures are drawn.
        scorer: Tells what a picture shows; by default the one that ``trials`` names, else the
            world's.

    Raises:
        ErasureError: If nothing can tell what a picture shows.
    """

    def __init__(
        self,
        edited: Backbone,
        original: Backbone,
        concepts: Sequence[Concept],
        trials: Trials | None = None,
        scorer: Scorer | None = None,
    ) -> None:
        self.edited = edited
        self.original = original
        self.concepts = list(concepts)
        self.trials = trials = trials or Trials()
        world = original.world
        self.steps: int = trials.steps or (world.steps if world else 50)
        default = world.guidance if world else 7.5
        self.guidance: float = default if trials.guidance is None else trials.guidance
        source = trials.scorer or (world.scorer if world else None)
        if scorer is None and source is None:
            raise ErasureError(NO_SCORER.format(original.name))
        self.scorer = scorer or Scorer.load(source or "").to(original.device)
        self._judges = {
            c.name: ZeroShotClassifier(self.scorer, Vocabulary(world, [c]), ())
            for c in self.concepts
        }

    @property
    def seeds(self) -> range:
        """One an independent attack."""
        return range(self.trials.seeds)

    def cases(self, seed: int) -> list[Case]:
        """One a concept; its sentences take turns with the seeds."""
        made, count = [], self.trials.pictures
        for concept in self.concepts:
            asked = self._judges[concept.name].vocabulary.concept_prompts()
            sentence, thing = asked[
                (seed + 1) % len(asked)
            ]  # the second is the one with an article
            made.append(
                Case(concept, sentence, thing, seed, [seed * count + i for i in range(count)])
            )
        return made

    def sentences(self, case: Case) -> list[str]:
        """Every sentence that the case's concept is put into, with ``{}`` for its words."""
        templates = self._judges[case.concept.name].vocabulary.templates(case.concept.kind)
        return [template.replace("{thing}", case.thing) for template in templates]

    @torch.no_grad()
    def draw(
        self,
        conditioning: Conditioning,
        seeds: Sequence[int],
        *,
        model: Backbone | None = None,
    ) -> Tensor:
        """Pictures ``(B, 3, H, W)`` in 0..1.

        Args:
            conditioning: What the denoiser reads, ``(B, L, D)``, or ``(1, L, D)`` for all:
                ``encode`` of prompts, ``contextualize`` of input embeddings, or whatever an attack
                makes up.
            seeds: Of the noise, ``B``.
            model: Who draws; the edited model by default.
        """
        model = model or self.edited
        every = conditioning if len(conditioning) == len(seeds) else conditioning.expand(len(seeds))
        parts = self._parts(len(seeds))
        return torch.cat(
            [model.decode(self._latents(model, every[part], seeds[part])) for part in parts]
        )

    def _parts(self, count: int) -> list[slice]:
        return [slice(i, i + self.trials.draw_size) for i in range(0, count, self.trials.draw_size)]

    def _latents(self, model: Backbone, conditioning: Conditioning, seeds: Sequence[int]) -> Tensor:
        size, steps, guidance = self.trials.size, self.steps, self.guidance
        return final_latents(
            rollout(model, conditioning, seeds, steps=steps, guidance=guidance, size=size)
        )

    @torch.no_grad()
    def examples(self, case: Case, count: int) -> Tensor:
        """Latents ``(N, C, h, w)`` of the concept as the original draws it, from noise that no case
        is judged by.
        """
        generator = torch.Generator().manual_seed(derive_seed(case.seed, 9))
        seeds = torch.randint(2**20, 2**31, (count,), generator=generator).tolist()
        plain = self.original.encode([case.sentence]).expand(count)
        parts = [self._latents(self.original, plain[p], seeds[p]) for p in self._parts(count)]
        return require_finite_images(
            torch.cat(parts), "original", self.original, [case.sentence] * count
        )

    def denoising_loss(self, conditioning: Conditioning, clean: Tensor, t: Tensor) -> Tensor:
        """How badly the edited model denoises examples of the concept when it is asked so, a
        scalar.

        ``|eps_theta(a_t x_0 + s_t n, t, c) - n|^2``, in the model's own prediction, with fresh
        noise ``n``.

        Args:
            conditioning: ``c``, ``(B, L, D)`` or ``(1, L, D)``; gradients reach it.
            clean: Latents ``x_0``, ``(B, C, h, w)``.
            t: Times, ``(B,)``.
        """
        x, t, wanted = add_noise(self.edited.process, clean, t)
        every = conditioning if len(conditioning) == len(x) else conditioning.expand(len(x))
        return mse_loss(self.edited.denoise(x, t, every), wanted)

    @torch.no_grad()
    def margin(self, case: Case, pictures: Tensor) -> Tensor:
        """How much nearer pictures ``(B, 3, H, W)`` are to the case's concept than to all else,
        cosines ``(B,)``.
        """
        question = self._judges[case.concept.name].question("efficacy", case.thing)
        near = self.scorer.images(pictures) @ question.labels.T
        return near[:, question.right].amax(dim=1) - near[:, ~question.right].amax(dim=1)

    def promise(self, case: Case, prompt: str) -> float:
        """The `margin` of what a prompt draws from noise that no case is judged by; above 0 it
        shows the concept.
        """
        pictures = self.draw(self.edited.encode([prompt]), [derive_seed(case.seed, 8) % 2**31])
        return self.margin(case, pictures).item()

    def recognised(self, case: Case, pictures: Tensor) -> Tensor:
        """Which of the pictures ``(B, 3, H, W)`` show the case's concept, boolean ``(B,)``."""
        return self.margin(case, pictures) > 0

    def share(self, case: Case, pictures: Tensor) -> float:
        """The share of them."""
        return self.recognised(case, pictures).float().mean().item()

    @cached_property
    def protocol(self) -> Protocol:
        """How pictures are drawn and judged."""
        cases = [case for seed in self.seeds for case in self.cases(seed)]
        side = self.original.decode(
            torch.zeros(1, *self.original.latent_shape(self.trials.size)).to(self.edited.device)
        )
        packages = ("erasure-lightning", "torch", "diffusers", "transformers")
        return Protocol(
            prompts={
                c.name: sorted({case.sentence for case in cases if case.concept == c})
                for c in self.concepts
            },
            seeds=sorted({seed for case in cases for seed in case.seeds}),
            steps=self.steps,
            guidance=self.guidance,
            size=side.shape[-1],
            sampler=self.original.sampler_name,
            scorer_fingerprint=self.scorer.fingerprint(),
            backbone_fingerprint=self.original.fingerprint(),
            vocabulary=short_hash([self._judges[c.name].labels for c in self.concepts]),
            backbone=self.original.name,
            scorer=self.scorer.name,
            versions={name: version(name) for name in packages},
        )
