"""The things a model is expected to draw: which of them an edit erases, and which it must leave alone."""

from collections.abc import Iterable, Sequence

from typing import TypeVar

from erasure_lightning.concepts import Concept
from erasure_lightning.worlds import World

T = TypeVar("T")

#: The 80 object names of COCO: what is kept and measured where a model has no vocabulary of its own.
EVERYDAY: tuple[str, ...] = tuple(
    """person,bicycle,car,motorcycle,airplane,bus,train,truck,boat,traffic light,fire hydrant,stop sign,parking meter,bench,
    bird,cat,dog,horse,sheep,cow,elephant,bear,zebra,giraffe,backpack,umbrella,handbag,tie,suitcase,frisbee,skis,snowboard,
    sports ball,kite,baseball bat,baseball glove,skateboard,surfboard,tennis racket,bottle,wine glass,cup,fork,knife,spoon,
    bowl,banana,apple,sandwich,orange,broccoli,carrot,hot dog,pizza,donut,cake,chair,couch,potted plant,bed,dining table,
    toilet,television,laptop,computer mouse,remote,keyboard,cell phone,microwave,oven,toaster,sink,refrigerator,book,clock,
    vase,scissors,teddy bear,hair dryer,toothbrush""".replace("\n", "").replace("    ", "").split(",")
)


def spread(items: Sequence[T], count: int) -> list[T]:
    """``count`` items at equal distances, or all of them if there are fewer."""
    return [items[i * len(items) // count] for i in range(count)] if count < len(items) else list(items)


class Vocabulary:
    """Labels of a world, or everyday things and the concepts themselves where there is no world.

    Args:
        world: Where the backbone comes from, if it comes from a world.
        concepts: What is erased.
    """

    def __init__(self, world: World | None, concepts: Sequence[Concept]) -> None:
        self.world = world
        self.concepts = list(concepts)
        names = [label.name for label in world.labels] if world else [*EVERYDAY, *(c.name for c in concepts)]
        self.labels: tuple[str, ...] = tuple(dict.fromkeys(names))

    def named(self, words: Iterable[str]) -> set[str]:
        """Labels that the words name: themselves and their twins, else everything tagged so."""
        if self.world is None:
            return {label for label in self.labels if label in set(words)}
        return {label for word in words for label in self.world.labels_of(word)}

    @property
    def erased(self) -> set[str]:
        """Labels that must no longer be drawn."""
        return self.named(c.name for c in self.concepts if c.kind == "thing")

    @property
    def others(self) -> list[str]:
        """Labels that an edit must leave alone: all but the erased and the anchors, in the table's order."""
        words = {w for c in self.concepts for w in c.domain}
        return [label for label in self.labels if label not in self.erased | (words & set(self.labels))]

    @property
    def retained(self) -> list[str]:
        """Labels that retention trains on: the others without anything that the domain's words call."""
        away = self.named(w for c in self.concepts for w in c.domain)
        return [label for label in self.others if label not in away]

    @property
    def captions(self) -> tuple[str, ...]:
        """Sentences the model was trained on, ``{}`` for the thing: bare, with an article, and as a picture."""
        return tuple(self.world.captions["label"]) if self.world else ("{}", "a {}", "an image of a {}")

    def concept_prompts(self) -> list[str]:
        """Prompts that name the concepts: a thing in every caption, a style on a few of the things that are kept."""
        things = spread(self.others, 12)
        named = [
            [template.format(c.name) for template in self.captions]
            if c.kind == "thing"
            else [f"a {thing}, {c.name} style" for thing in things]
            for c in self.concepts
        ]
        return [prompt for prompts in named for prompt in prompts]

    def same(self, a: str, b: str) -> bool:
        """Whether two labels count as one (``dog`` and ``dog face``)."""
        return a == b if self.world is None else self.world.same(a, b)
