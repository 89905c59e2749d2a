"""`Vocabulary`: the labels that a model can generate, divided into erased and retained ones."""

from collections.abc import Iterable, Sequence
from random import Random
from typing import TypeVar

from erasure_lightning.concepts.concept import TEMPLATES_BY_KIND, Concept, ConceptKind
from erasure_lightning.concepts.word_lists import COCO_OBJECTS, UNNAMED_PEOPLE, WELL_KNOWN_STYLES
from erasure_lightning.concepts.worlds import World
from erasure_lightning.errors import ErasureError
from erasure_lightning.files.words import folded, naming

_T = TypeVar("_T")

#: Largest number of measured prompts of concepts, and of domains, unless there are more concepts.
_MAX_PROMPTS = 120

#: Other styles per label for a model without a world; labels take turns.
_STYLES_PER_LABEL = 2

#: Captions of things for a model without a world.
_CAPTIONS: tuple[str, ...] = ("{}", "a {}", "an image of a {}")

#: Captions of kinds that no world's captions suit.
_CAPTIONS_BY_KIND: dict[ConceptKind, tuple[str, ...]] = {
    "person": ("{}", "a photo of {}", "an image of {}"),
    "action": ("{}", "a person {}", "an image of a person {}"),
}


def evenly_spaced(items: Sequence[_T], count: int) -> list[_T]:
    """``count`` items at equal distances, or all of them if there are fewer."""
    if count >= len(items):
        return list(items)
    return [items[i * len(items) // count] for i in range(count)]


def random_subset(items: Sequence[_T], count: int) -> list[_T]:
    """``count`` random items (seed 7), in their order; all of them if there are fewer."""
    indices = Random(7).sample(range(len(items)), min(count, len(items)))
    return [items[index] for index in sorted(indices)]


def unknown_to(world: World, word: str) -> ErasureError:
    """The error for a word that a world does not know, with the most similar ones."""
    near = world.nearest(word)
    known = f"`find_world({world.name!r}).labels` lists what it knows"
    hint = f"Nearest: {', '.join(near)}" if near else known
    return ErasureError(f"The world {world.name} does not know {word!r}. {hint}.")


class Vocabulary:
    """Labels of a world; without a world, COCO's objects and the concepts but for styles.

    Args:
        world: The backbone's world, if it has one.
        concepts: The concepts to erase.
    """

    def __init__(self, world: World | None, concepts: Sequence[Concept]) -> None:
        self.world = world
        self.concepts = list(concepts)
        known = set(map(folded, COCO_OBJECTS))
        things = (c.name for c in concepts if c.kind != "style")
        more = (name for name in things if folded(name) not in known)
        names = [label.name for label in world.labels] if world else [*COCO_OBJECTS, *more]
        self.labels: tuple[str, ...] = tuple(dict.fromkeys(names))

    def named(self, words: Iterable[str]) -> set[str]:
        """Labels of a name, else all labels with that tag."""
        if self.world is None:
            return set(filter(naming(words), self.labels))
        return {label for word in words for label in self.world.labels_of(word)}

    def require_labels(self, words: Iterable[str]) -> None:
        """Raises unless the world, if there is one, knows all words as things.

        Raises:
            ErasureError: For the first that it does not know, with the most similar ones.
        """
        world = self.world
        if world and (unknown := [word for word in words if not world.labels_of(word)]):
            raise unknown_to(world, unknown[0])

    @property
    def erased(self) -> set[str]:
        """Labels that an edit must remove."""
        return self.named(c.name for c in self.concepts if c.kind != "style")

    @property
    def others(self) -> list[str]:
        """Labels that an edit must retain: all but the erased and their domains' words."""
        domains = [word for c in self.concepts for word in c.domain]
        excluded = self.erased | set(filter(naming(domains), self.labels))
        if self.world is not None:
            same = self.world.same
            excluded |= {label for label in self.labels if any(same(label, w) for w in domains)}
        return [label for label in self.labels if label not in excluded]

    def templates(self, kind: ConceptKind) -> tuple[str, ...]:
        """Sentences for concepts of a kind: the world's own, else `TEMPLATES_BY_KIND`."""
        own = self.world.templates.get(kind) if self.world else None
        return tuple(own) if own else TEMPLATES_BY_KIND[kind]

    @property
    def captions(self) -> tuple[str, ...]:
        """Sentences of the model's training with ``{}``: bare, with an article, as an image."""
        return tuple(self.world.captions["label"]) if self.world else _CAPTIONS

    def retained_captions(self, label: str) -> list[str]:
        """Prompts of a retained label: every caption, and other styles if a style is erased."""
        plain = [caption.format(label) for caption in self.captions]
        styles = self.other_styles
        if styles and not self.world:
            first = _STYLES_PER_LABEL * self.labels.index(label)
            styles = [styles[(first + i) % len(styles)] for i in range(_STYLES_PER_LABEL)]
        return plain + [self.styled(label, style) for style in styles]

    @property
    def other_styles(self) -> list[str]:
        """Retained styles if a style is erased: the world's, else anchors and well-known ones."""
        erased = [c for c in self.concepts if c.kind == "style"]
        if not erased:
            return []
        anchors = [c.anchor for c in erased if c.anchor]
        excluded = {folded(word) for c in erased for word in (c.name, *c.domain) if word}
        if self.world:
            own = set(map(folded, self.world.styles))
            more = [anchor for anchor in anchors if folded(anchor) not in own]
            known = dict.fromkeys((*self.world.styles, *more))
            return [style for style in known if folded(style) not in excluded]
        apart = [
            s
            for s in WELL_KNOWN_STYLES
            if not any(g in folded(s) or folded(s) in g for g in excluded)
        ]
        return list(dict.fromkeys((*anchors, *apart)))

    def related_captions(self) -> list[str]:
        """Prompts of anchors that are no labels, and of other people if a person is erased."""
        known = set(map(folded, self.labels))
        things = [anchor for anchor in self._anchors("thing") if folded(anchor) not in known]
        people = self._anchors("person")
        if any(c.kind == "person" for c in self.concepts):
            people += UNNAMED_PEOPLE
        by_kind: dict[ConceptKind, list[str]] = {
            "thing": things,
            "person": people,
            "action": self._anchors("action"),
        }
        texts = [
            caption.format(words)
            for kind, named in by_kind.items()
            for words in named
            for caption in self._captions(kind)
        ]
        return list(dict.fromkeys(texts))

    def _anchors(self, kind: ConceptKind) -> list[str]:
        """Anchors of the concepts of a kind."""
        return [c.anchor for c in self.concepts if c.kind == kind and c.anchor]

    def concept_prompts(self) -> list[tuple[str, str]]:
        """Prompts that name the concepts, each with the label that a style is applied to.

        The label is empty for things and people. With many concepts there are fewer sentences for
        each, at least one.
        """
        prompts = [self._prompts(c.name, c.kind, self._captions(c.kind)) for c in self.concepts]
        return self._limited(prompts)

    def domain_prompts(self) -> list[tuple[str, str]]:
        """As `concept_prompts`, for the domains' words, each in one sentence."""
        prompts = []
        for c in self.concepts:
            captions = self._captions(c.kind)[1:2]
            prompts.append([p for word in c.domain for p in self._prompts(word, c.kind, captions)])
        return self._limited(prompts)

    @staticmethod
    def _limited(by_concept: Sequence[Sequence[_T]]) -> list[_T]:
        """All prompts up to `_MAX_PROMPTS`; beyond, equally many of each concept in turn."""
        if sum(map(len, by_concept)) <= _MAX_PROMPTS:
            return [prompt for prompts in by_concept for prompt in prompts]
        by_concept = [prompts for prompts in by_concept if prompts]
        each = max(1, _MAX_PROMPTS // len(by_concept))
        rotated = [
            [*prompts[i % len(prompts) :], *prompts[: i % len(prompts)]]
            for i, prompts in enumerate(by_concept)
        ]
        return [prompt for prompts in rotated for prompt in prompts[:each]]

    def _captions(self, kind: ConceptKind) -> tuple[str, ...]:
        return _CAPTIONS_BY_KIND.get(kind, self.captions)

    def _prompts(
        self, words: str, kind: ConceptKind, captions: Sequence[str]
    ) -> list[tuple[str, str]]:
        """A thing or a person in every caption, a style on a few of the retained labels."""
        if kind != "style":
            return [(caption.format(words), "") for caption in captions]
        return [(self.styled(thing, words), thing) for thing in evenly_spaced(self.others, 12)]

    @staticmethod
    def styled(thing: str, style: str) -> str:
        """The sentence for a thing in a style, also the one that scorers recognise a style by."""
        return f"a {thing}, {style} style"
