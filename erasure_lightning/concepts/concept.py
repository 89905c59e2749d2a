"""What is to be forgotten, what stands in its place, and the sentences they appear in."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from erasure_lightning.errors import ErasureError
from erasure_lightning.files.wording import folded, naming

Kind = Literal["thing", "style", "person"]

#: Sentences for things: the captions people write, ``{}`` stands for the concept's words.
THING_TEMPLATES: tuple[str, ...] = (
    "{}",
    "a {}",
    "the {}",
    "a photo of a {}",
    "a picture of a {}",
    "an image of a {}",
    "a drawing of a {}",
    "a rendering of a {}",
    "a small {}",
    "a close-up of a {}",
)

#: Sentences for styles; ``{thing}`` is filled with something that is to be kept.
STYLE_TEMPLATES: tuple[str, ...] = (
    "{thing}, {} style",
    "a {thing}, {} style",
    "the {thing}, {} style",
    "a {thing} in {} style",
    "a {thing} in the style of {}",
    "a {} style image of a {thing}",
    "a {} style picture of a {thing}",
    "a {} style drawing of a {thing}",
)

#: Sentences for people, whose names bear no article.
PERSON_TEMPLATES: tuple[str, ...] = (
    "{}",
    "a photo of {}",
    "a picture of {}",
    "an image of {}",
    "a drawing of {}",
    "a painting of {}",
    "a portrait of {}",
    "a close-up of {}",
    "{} in the street",
    "{} smiling",
)

#: Sentences of each kind where a world has none of its own.
TEMPLATES: dict[Kind, tuple[str, ...]] = {
    "thing": THING_TEMPLATES,
    "style": STYLE_TEMPLATES,
    "person": PERSON_TEMPLATES,
}


@dataclass
class Concept:
    """Something a model must forget.

    Args:
        name: Its words as they appear in prompts, ``red heart``.
        anchor: What is drawn in its place, ``star``; empty for nothing in particular.
        domain: Words that call it without naming it (synonyms, associations). They are measured and
            kept out of the retained prompts; no method trains on them.
        kind: ``thing``, ``style`` (an artist's too) or ``person``; decides which sentences it is
            put into.

    Raises:
        ErasureError: If the name is empty or equals the anchor, which would erase nothing.
    """

    name: str
    anchor: str = ""
    domain: list[str] = field(default_factory=list)
    kind: Kind = "thing"

    def __post_init__(self) -> None:
        if not self.name.strip():
            raise ErasureError(
                "A concept needs a name: the words that call it in a prompt. Found an empty one."
            )
        if naming([self.name])(self.anchor):
            raise ErasureError(
                f"Concept {self.name!r} has itself as anchor, which would erase nothing; name"
                " another."
            )


@dataclass(frozen=True)
class Concepts:
    """Concepts that have been read, as one value.

    A parser copies and checks a list item by item, in a time that grows with the square of their
    number.

    Args:
        listed: The concepts.
        file: Where they were read, if in a file of their own.
    """

    listed: tuple[Concept, ...]
    file: Path | None = field(default=None, compare=False)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Concepts":
        return self


class Phrase(NamedTuple):
    """A prompt that remembers where its concept's words stand.

    Args:
        text: The prompt.
        start: First character of the concept's words.
        stop: One past their last character; equal to ``start`` where there are none.
    """

    text: str
    start: int
    stop: int


def phrase(template: str, words: str) -> Phrase:
    """Put ``words`` in the place of ``{}``; empty words leave no double space behind."""
    before, _, after = template.partition("{}")
    if not words:
        return Phrase(
            f"{before.rstrip()}{after}" if after.strip() else before.rstrip(),
            len(before.rstrip()),
            len(before.rstrip()),
        )
    return Phrase(f"{before}{words}{after}", len(before), len(before) + len(words))


class PromptBatch(NamedTuple):
    """One minibatch of concept prompts; a method reads what it needs.

    Args:
        templates: ``B`` sentences with ``{}`` where the concept's words go.
        concepts: ``B`` concepts' words.
        anchors: ``B`` anchors' words, empty where a concept has no anchor.
        indices: Number of each concept among the method's, ``B`` of them; none where no source
            draws for them.
    """

    templates: list[str]
    concepts: list[str]
    anchors: list[str]
    indices: Sequence[int] = ()

    @classmethod
    def plain(cls, prompts: Sequence[str]) -> "PromptBatch":
        """Prompts without a concept."""
        return cls(list(prompts), [""] * len(prompts), [""] * len(prompts), [0] * len(prompts))

    def rows(self, numbers: Sequence[int]) -> "PromptBatch":
        """Some sentences, by number, in that order."""
        templates, concepts, anchors = ([each[i] for i in numbers] for each in self[:3])
        return PromptBatch(
            templates, concepts, anchors, [self.indices[i] for i in numbers] if self.indices else ()
        )

    @property
    def prompts(self) -> list[Phrase]:
        """The sentences that ask for the concepts."""
        return [phrase(t, c) for t, c in zip(self.templates, self.concepts, strict=True)]

    @property
    def targets(self) -> list[Phrase]:
        """The same sentences with the anchors in the concepts' place."""
        return [phrase(t, a) for t, a in zip(self.templates, self.anchors, strict=True)]

    @property
    def alternatives(self) -> list[Phrase]:
        """What a denoiser is asked instead: `targets`, but the empty prompt where there is no
        anchor.
        """
        return [
            p if a else Phrase("", 0, 0) for p, a in zip(self.targets, self.anchors, strict=True)
        ]


def in_short(names: Sequence[str]) -> str:
    """``dagger, bomb, bow and 97 more``: all names in a row, or the first three and how many more."""
    return (
        f"{', '.join(names[:3])} and {len(names) - 3} more" if len(names) > 3 else ", ".join(names)
    )


def check_concepts(concepts: Sequence[Concept], owner: str) -> None:
    """Raise unless there is at least one concept, each named once, and none is another's anchor, in
    any case or number.

    Raises:
        ErasureError: Naming ``owner``, which needs them, and the offenders.
    """
    if not concepts:
        raise ErasureError(
            f"{owner} needs at least one concept; found none. Give --model.concepts '[{{name:"
            " cigarette}]'."
        )
    counts = Counter(folded(c.name) for c in concepts)
    if twice := sorted(name for name, count in counts.items() if count > 1):
        raise ErasureError(
            f"{owner} needs each concept once; found {', '.join(twice)} more than once."
        )
    erased = naming(c.name for c in concepts)
    if clash := sorted({c.anchor for c in concepts if erased(c.anchor)}):
        raise ErasureError(
            f"{owner} would erase its own anchors; found {', '.join(clash)} as concept and as"
            " anchor."
        )
