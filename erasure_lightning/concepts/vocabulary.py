"""The things a model is expected to draw: which of them an edit erases, and which it must leave
alone.
"""

from collections.abc import Iterable, Sequence
from random import Random
from typing import TypeVar

from erasure_lightning.concepts.concept import TEMPLATES_BY_KIND, Concept, ConceptKind
from erasure_lightning.concepts.word_lists import COCO_OBJECTS, UNNAMED_PEOPLE, WELL_KNOWN_STYLES
from erasure_lightning.concepts.worlds import World
from erasure_lightning.files.words import folded, naming

_T = TypeVar("_T")

#: Prompts of each kind (concepts, domains) that are measured, as long as there are no more
#: concepts.
_MAX_PROMPTS = 120

#: Of other styles without a world, how many each label is put into; labels take turns.
_STYLES_PER_LABEL = 2

#: Captions of things, and of people, where a model has no vocabulary of its own: bare, plain, and
#: as a picture.
_CAPTIONS: tuple[str, ...] = ("{}", "a {}", "an image of a {}")
_PERSON_CAPTIONS: tuple[str, ...] = ("{}", "a photo of {}", "an image of {}")


def evenly_spaced(items: Sequence[_T], count: int) -> list[_T]:
    """``count`` items at equal distances, or all of them if there are fewer."""
    return (
        [items[i * len(items) // count] for i in range(count)]
        if count < len(items)
        else list(items)
    )


def random_subset(items: Sequence[_T], count: int) -> list[_T]:
    """``count`` items by lot, the same in every run (seed 7), in their order; all if there are
    fewer.
    """
    places = Random(7).sample(range(len(items)), min(count, len(items)))
    return [items[place] for place in sorted(places)]


class Vocabulary:
    """Labels of a world, or everyday things and the concepts themselves where there is no world.

    Args:
        world: Where the backbone comes from, if it comes from a world.
        concepts: What is erased.
    """

    def __init__(self, world: World | None, concepts: Sequence[Concept]) -> None:
        self.world = world
        self.concepts = list(concepts)
        known = set(map(folded, COCO_OBJECTS))
        more = (c.name for c in concepts if folded(c.name) not in known)
        names = [label.name for label in world.labels] if world else [*COCO_OBJECTS, *more]
        self.labels: tuple[str, ...] = tuple(dict.fromkeys(names))

    def named(self, words: Iterable[str]) -> set[str]:
        """Labels that the words name: themselves and their twins, else everything tagged so."""
        if self.world is None:
            return set(filter(naming(words), self.labels))
        return {label for word in words for label in self.world.labels_of(word)}

    @property
    def erased(self) -> set[str]:
        """Labels that must no longer be drawn."""
        return self.named(c.name for c in self.concepts if c.kind != "style")

    @property
    def others(self) -> list[str]:
        """Labels that an edit must leave alone: all but the erased and their domains' words, in the
        table's order.
        """
        erased, near = self.erased, naming(word for c in self.concepts for word in c.domain)
        return [label for label in self.labels if label not in erased and not near(label)]

    def templates(self, kind: ConceptKind) -> tuple[str, ...]:
        """Sentences that concepts of a kind are put into: the world's own, else the core's."""
        own = self.world.templates.get(kind) if self.world else None
        return tuple(own) if own else TEMPLATES_BY_KIND[kind]

    @property
    def captions(self) -> tuple[str, ...]:
        """Sentences the model was trained on, ``{}`` for the thing: bare, with an article, and as a
        picture.
        """
        return tuple(self.world.captions["label"]) if self.world else _CAPTIONS

    def kept_captions(self, label: str) -> list[str]:
        """The prompts of a label that must survive: every caption, and where a style goes, other
        styles too.
        """
        plain = [caption.format(label) for caption in self.captions]
        styles = self.other_styles
        if styles and not self.world:
            first = _STYLES_PER_LABEL * self.labels.index(label)
            styles = [styles[(first + i) % len(styles)] for i in range(_STYLES_PER_LABEL)]
        return plain + [self.styled(label, style) for style in styles]

    @property
    def other_styles(self) -> list[str]:
        """Styles that must survive where a style is erased: the world's, else anchors and
        well-known ones.
        """
        erased = [c for c in self.concepts if c.kind == "style"]
        if not erased:
            return []
        anchors = [c.anchor for c in erased if c.anchor]
        gone = {folded(c.name) for c in erased}
        if self.world:
            own = set(map(folded, self.world.styles))
            known = dict.fromkeys(
                (*self.world.styles, *(a for a in anchors if folded(a) not in own))
            )
            return [style for style in known if folded(style) not in gone]
        gone |= {folded(word) for c in erased for word in c.domain}
        apart = [
            s for s in WELL_KNOWN_STYLES if not any(g in folded(s) or folded(s) in g for g in gone)
        ]
        return list(dict.fromkeys((*anchors, *apart)))

    def kin_captions(self) -> list[str]:
        """The prompts of anchors that are no labels, and of other people where a person is erased."""
        people = [c for c in self.concepts if c.kind == "person"]
        named = [c.anchor for c in self.concepts if c.kind == "thing" and c.anchor]
        known = set(map(folded, self.labels))
        things = [anchor for anchor in named if folded(anchor) not in known]
        others = [*(c.anchor for c in people if c.anchor), *(UNNAMED_PEOPLE if people else ())]
        texts = [caption.format(words) for words in things for caption in self.captions]
        texts += [caption.format(words) for words in others for caption in _PERSON_CAPTIONS]
        return list(dict.fromkeys(texts))

    def concept_prompts(self) -> list[tuple[str, str]]:
        """Prompts that name the concepts, each with the thing a style is put on, empty where a
        thing is erased.

        Of many concepts each is asked for in fewer sentences, but in one at least.
        """
        return self._share(
            [self._asking(c.name, c.kind, self._captions(c.kind)) for c in self.concepts]
        )

    def domain_prompts(self) -> list[tuple[str, str]]:
        """The same for the words that call the concepts without naming them, each in one sentence."""
        return self._share(
            [
                [p for w in c.domain for p in self._asking(w, c.kind, self._captions(c.kind)[1:2])]
                for c in self.concepts
            ]
        )

    @staticmethod
    def _share(asked: Sequence[Sequence[_T]]) -> list[_T]:
        """All prompts up to `_MAX_PROMPTS`; beyond, equally many of each concept, which take turns with the
        sentences.
        """
        if sum(map(len, asked)) <= _MAX_PROMPTS:
            return [prompt for prompts in asked for prompt in prompts]
        asked = [prompts for prompts in asked if prompts]
        each = max(1, _MAX_PROMPTS // len(asked))
        turned = [
            [*prompts[i % len(prompts) :], *prompts[: i % len(prompts)]]
            for i, prompts in enumerate(asked)
        ]
        return [prompt for prompts in turned for prompt in prompts[:each]]

    def _captions(self, kind: ConceptKind) -> tuple[str, ...]:
        return _PERSON_CAPTIONS if kind == "person" else self.captions

    def _asking(
        self, words: str, kind: ConceptKind, captions: Sequence[str]
    ) -> list[tuple[str, str]]:
        """A thing or a person in every caption, a style on a few of the things that are kept."""
        if kind != "style":
            return [(caption.format(words), "") for caption in captions]
        return [(self.styled(thing, words), thing) for thing in evenly_spaced(self.others, 12)]

    @staticmethod
    def styled(thing: str, style: str) -> str:
        """The sentence that asks for a thing in a style, and by which a style is recognised."""
        return f"a {thing}, {style} style"

    def same(self, a: str, b: str) -> bool:
        """Whether two labels count as one (``dog`` and ``dog face``)."""
        return naming([a])(b) if self.world is None else self.world.same(a, b)
