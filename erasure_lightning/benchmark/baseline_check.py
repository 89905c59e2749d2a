"""The premise of a benchmark: what is to be erased is drawn, and recognised, before any edit."""

from typing import NamedTuple

from erasure_lightning.backbones.base import Backbone
from erasure_lightning.benchmark.suite import ConceptEntry
from erasure_lightning.callbacks.measure import EditMetrics
from erasure_lightning.concepts.vocabulary import Vocabulary
from erasure_lightning.concepts.worlds import World
from erasure_lightning.data.datamodule import plan
from erasure_lightning.data.image_plan import ImageRequest
from erasure_lightning.diffusion.sampling import sample_images
from erasure_lightning.errors import ErasureError
from erasure_lightning.metrics.groups import ERASURE_GROUPS
from erasure_lightning.metrics.scorer import Scorer

#: Shares that must be recognised: prompts that name a thing, those that name a style, and those of
#: a domain.
THINGS, STYLES, DOMAINS = 0.9, 0.5, 0.5

#: Pictures drawn side by side.
BATCH = 32


class BaselineCheck(NamedTuple):
    """How often an entry's pictures are recognised before any edit.

    Args:
        entry: What is to be erased.
        own: Of the prompts that name it.
        domain: Of those that call it without naming it, None where there are none.
        neighbours: Of what must stay, None where nothing is named.
    """

    entry: ConceptEntry
    own: float
    domain: float | None
    neighbours: float | None

    @property
    def holds(self) -> bool:
        """Whether there is something to erase, and something to keep."""
        least = STYLES if self.entry.group == "style" else THINGS
        near = (self.neighbours is None) or self.neighbours >= THINGS
        return self.own >= least and (self.domain is None or self.domain >= DOMAINS) and near


class Examiner:
    """Draws what entries are measured by, with the original model.

    Args:
        backbone: The original model.
        seeds: Each prompt is drawn with as many.

    Raises:
        ErasureError: If the model comes from no world, whose scorer could tell.
    """

    def __init__(self, backbone: Backbone, seeds: int) -> None:
        if backbone.world is None:
            raise ErasureError(
                f"--check needs a world, whose scorer tells what it draws; found {backbone.name}."
                " Measure a single run with a scorer instead: --trainer.callbacks+=Measure"
                " --trainer.callbacks.scorer=FOLDER."
            )
        self.world: World = backbone.world
        self.backbone = backbone
        self.seeds = seeds
        self.scorer = Scorer.load(self.world.scorer).to(backbone.device)

    def premise(self, entry: ConceptEntry) -> BaselineCheck:
        """Draw an entry's own, domain and neighbours' prompts, and recognise them."""
        vocabulary = Vocabulary(self.world, entry.erase)
        rows = [
            row
            for row in plan(vocabulary, 1, entry.neighbours)
            if row[0] in (*ERASURE_GROUPS, "neighbours")
        ]
        shots = [
            ImageRequest(prompt, seed, group, "", answer, self.world.steps, self.world.guidance)
            for group, prompt, answer in rows
            for seed in range(self.seeds)
        ]
        gauge = EditMetrics(self.scorer, vocabulary, shots, self.backbone.device)
        for i in range(0, len(shots), BATCH):
            some = shots[i : i + BATCH]
            pictures = sample_images(
                self.backbone, [s.prompt for s in some], [s.seed for s in some],
                steps=self.world.steps, guidance=self.world.guidance,
            )  # fmt: skip
            gauge.update(some, pictures, pictures)
        found = gauge.estimates()
        own, domain, near = (
            found[group]["recognized"]["before"].mean if group in found else None
            for group in (*ERASURE_GROUPS, "neighbours")
        )
        assert own is not None  # an entry names something
        return BaselineCheck(entry, own, domain, near)
