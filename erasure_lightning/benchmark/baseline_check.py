"""Checks that the original model generates a suite's concepts recognisably, before any edit."""

from typing import NamedTuple

from erasure_lightning.backbones.base import Backbone
from erasure_lightning.benchmark.suite import ConceptEntry
from erasure_lightning.callbacks.measure import EditMetrics
from erasure_lightning.checks import require
from erasure_lightning.concepts.vocabulary import Vocabulary
from erasure_lightning.concepts.worlds import World
from erasure_lightning.data.image_plan import ImageRequest, measured_prompts
from erasure_lightning.diffusion.sampling import sample_images
from erasure_lightning.errors import ErasureError
from erasure_lightning.metrics.scorer import Scorer

#: Least share of recognised images for prompts that name a thing, and for neighbours.
THING_THRESHOLD = 0.9

#: Least share of recognised images for prompts that name a style.
STYLE_THRESHOLD = 0.5

#: Least share of recognised images for prompts that describe a concept without its name.
DOMAIN_THRESHOLD = 0.5

#: Thresholds, and the columns of a printed `BaselineCheck`.
CHECK_HEADING = (
    f"needed: {THING_THRESHOLD:g} of own prompts ({STYLE_THRESHOLD:g}\n"
    f"of a style's) and of neighbours, {DOMAIN_THRESHOLD:g} of the domain's.\n\n"
    f"{'concept':24}{'kind':8}{'own':>6}{'domain':>8}{'neighbours':>12}  holds"
)

_BATCH_SIZE = 32


class BaselineCheck(NamedTuple):
    """Shares of an entry's images that are recognised before any edit, each from 0 to 1.

    Args:
        entry: The concepts to erase.
        own: Share for prompts that name them.
        domain: Share for prompts that describe them by other words; None where there are none.
        neighbours: Share for concepts that must be retained; None where none are named.
    """

    entry: ConceptEntry
    own: float
    domain: float | None
    neighbours: float | None

    @property
    def holds(self) -> bool:
        """Whether every share reaches its threshold."""
        own = STYLE_THRESHOLD if self.entry.group == "style" else THING_THRESHOLD
        return (
            self.own >= own
            and (self.domain is None or self.domain >= DOMAIN_THRESHOLD)
            and (self.neighbours is None or self.neighbours >= THING_THRESHOLD)
        )

    def __str__(self) -> str:
        shares = (self.own, self.domain, self.neighbours)
        own, domain, near = ("-" if share is None else f"{share:.2f}" for share in shares)
        holds = "yes" if self.holds else "NO"
        return f"{self.entry.name:24}{self.entry.group:8}{own:>6}{domain:>8}{near:>12}  {holds}"


class BaselineChecker:
    """Generates entries' prompts with the original model and scores the images.

    Args:
        backbone: The original model.
        seeds: Images per prompt.
        steps: Sampling steps, at least 1; the world's by default.
        guidance: Scale of classifier-free guidance, at least 0; the world's by default.
        image_size: Height and width in pixels, at least 1; the world's by default.

    Raises:
        ErasureError: If the model belongs to no world, so that it has no scorer, or a number is
            out of range.
    """

    def __init__(
        self,
        backbone: Backbone,
        seeds: int,
        steps: int | None = None,
        guidance: float | None = None,
        image_size: int | None = None,
    ) -> None:
        if backbone.world is None:
            raise ErasureError(
                f"--check needs a world, which has a scorer of its own; found {backbone.name}."
                " Or measure a single run with a scorer: --trainer.callbacks+=Measure"
                " --trainer.callbacks.scorer=FOLDER."
            )
        self.world: World = backbone.world
        self.backbone = backbone
        self.seeds = seeds
        self.steps = self.world.steps if steps is None else steps
        self.guidance = self.world.guidance if guidance is None else guidance
        self.image_size = image_size
        require("--check", at_least=1, seeds=self.seeds, steps=self.steps, image_size=image_size)
        require("--check", at_least=0, guidance=self.guidance)
        self.scorer = Scorer.load(self.world.scorer).to(backbone.device)

    def check(self, entry: ConceptEntry) -> BaselineCheck:
        """Generate an entry's own, domain and neighbours' prompts, and score the images."""
        groups = ("efficacy", "generality", "neighbours")
        vocabulary = Vocabulary(self.world, entry.erase)
        requests = [
            ImageRequest(prompt, seed, group, "", answer, self.steps, self.guidance)
            for group, prompt, answer in measured_prompts(vocabulary, 1, entry.neighbours)
            if group in groups
            for seed in range(self.seeds)
        ]
        metrics = EditMetrics(self.scorer, vocabulary, requests, self.backbone.device)
        for start in range(0, len(requests), _BATCH_SIZE):
            batch = requests[start : start + _BATCH_SIZE]
            images = sample_images(
                self.backbone,
                [request.prompt for request in batch],
                [request.seed for request in batch],
                steps=self.steps,
                guidance=self.guidance,
                size=self.image_size,
            )
            metrics.update(batch, images, images)
        estimates = metrics.estimates()
        own, domain, neighbours = (
            estimates[group]["recognized"]["before"].mean if group in estimates else None
            for group in groups
        )
        assert own is not None  # every entry names at least one concept
        return BaselineCheck(entry, own, domain, neighbours)
