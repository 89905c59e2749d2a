"""Concepts to erase, their anchors, and the sentences that name them."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from erasure_lightning.errors import ErasureError
from erasure_lightning.files.words import cleaned, did_you_mean, folded, naming

ConceptKind = Literal["thing", "style", "person", "action"]

#: Sentences for things, as in captions; ``{}`` is the concept's words.
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

#: Sentences for styles; ``{thing}`` is a retained label.
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

#: Sentences for people, whose names have no article.
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

#: Sentences for actions, such as ``smoking``.
ACTION_TEMPLATES: tuple[str, ...] = (
    "{}",
    "a person {}",
    "people {}",
    "someone {}",
    "a man {}",
    "a woman {}",
    "a photo of a person {}",
    "an image of a person {}",
    "a drawing of a person {}",
    "a person {} in the street",
)

#: Sentences of each kind, for models without sentences of their own.
TEMPLATES_BY_KIND: dict[ConceptKind, tuple[str, ...]] = {
    "thing": THING_TEMPLATES,
    "style": STYLE_TEMPLATES,
    "person": PERSON_TEMPLATES,
    "action": ACTION_TEMPLATES,
}


@dataclass
class Concept:
    """Something to erase from a model.

    Args:
        name: Its words as they appear in prompts, ``red heart``.
        anchor: What the edited model generates in its place, ``star``; empty for none.
        domain: Words that describe it without its name (synonyms, associations). They are measured
            and excluded from the retained prompts; no method trains on them.
        kind: ``thing``, ``style`` (an artist's too), ``person`` or ``action``; selects the
            sentences.

    Raises:
        ErasureError: If the name is empty or equals the anchor, which would have no effect, the
            kind is unknown, a name is no text, or the domain no list of texts.
    """

    name: str
    anchor: str = ""
    domain: list[str] = field(default_factory=list)
    kind: ConceptKind = "thing"

    def __post_init__(self) -> None:
        for key, text in (("name", self.name), ("anchor", self.anchor)):
            if not isinstance(text, str):
                raise ErasureError(f"A concept needs text as {key}; found {text!r}.")
        is_listed = isinstance(self.domain, list | tuple)
        if not (is_listed and all(isinstance(word, str) for word in self.domain)):
            raise ErasureError(
                f"A concept needs a list of words as domain, such as ['smoke']; found"
                f" {self.domain!r}."
            )
        if not cleaned(self.name):
            raise ErasureError(
                "A concept needs a name: the words for it in a prompt. Found an empty one."
            )
        if naming([self.name])(self.anchor):
            raise ErasureError(
                f"Concept {self.name!r} has itself as anchor, which would have no effect; name"
                " another."
            )
        if self.kind not in (kinds := get_args(ConceptKind)):
            hint = did_you_mean(str(self.kind), kinds)
            raise ErasureError(f"kind needs one of {', '.join(kinds)}; found {self.kind!r}.{hint}")


@dataclass(frozen=True)
class Concepts:
    """Concepts that were read from a file or an option, as one value.

    A parser copies and checks a list item by item, in time quadratic in their number.

    Args:
        listed: The concepts.
        file: Where they were read, if in a file of their own.
    """

    listed: tuple[Concept, ...]
    file: Path | None = field(default=None, compare=False)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Concepts":
        return self


class Phrase(NamedTuple):
    """A prompt with the position of its concept's words.

    Args:
        text: The prompt.
        start: First character of the concept's words.
        stop: One past their last character; equal to ``start`` where there are none.
    """

    text: str
    start: int
    stop: int


def require_templates(owner: str, templates: Sequence[str]) -> None:
    """Raises unless every template has ``{}`` once: a `Phrase` has its concept in one position.

    Args:
        owner: What needs them, for the message.
        templates: Sentences.

    Raises:
        ErasureError: For the first that has not, or for a text in place of a list.
    """
    if isinstance(templates, str):
        raise ErasureError(
            f"{owner} needs templates in a list, such as ['a photo of {{}}']; found {templates!r}."
        )
    if bad := [template for template in templates if template.count("{}") != 1]:
        raise ErasureError(
            f"{owner} needs {{}} in every template, once, for the concept's words; found"
            f" {bad[0]!r}."
        )


def fill_template(template: str, words: str) -> Phrase:
    """Replaces ``{}`` by ``words``; empty words leave no double space."""
    before, _, after = template.partition("{}")
    if not words:
        before = before.rstrip()
        return Phrase(before + after if after.strip() else before, len(before), len(before))
    return Phrase(f"{before}{words}{after}", len(before), len(before) + len(words))


class PromptBatch(NamedTuple):
    """A minibatch of concept prompts.

    Args:
        templates: ``B`` sentences with ``{}`` for the concept's words.
        concepts: ``B`` concepts' words.
        anchors: ``B`` anchors' words, empty where a concept has no anchor.
        indices: Index of each concept in the method's list, ``B``; empty where no latent source
            needs them.
    """

    templates: list[str]
    concepts: list[str]
    anchors: list[str]
    indices: Sequence[int] = ()

    @classmethod
    def without_concepts(cls, prompts: Sequence[str]) -> "PromptBatch":
        """Prompts without a concept."""
        return cls(list(prompts), [""] * len(prompts), [""] * len(prompts), [0] * len(prompts))

    @classmethod
    def of_words(
        cls, template: str, words: Sequence[str], anchors: Sequence[str]
    ) -> Iterator["PromptBatch"]:
        """A template's sentences with words and their anchors, at most 64 at a time."""
        for i in range(0, len(words), 64):
            batch = list(words[i : i + 64])
            yield cls([template] * len(batch), batch, list(anchors[i : i + 64]))

    def rows(self, numbers: Sequence[int]) -> "PromptBatch":
        """The rows with these numbers, in this order."""
        templates, concepts, anchors = ([column[i] for i in numbers] for column in self[:3])
        indices = [self.indices[i] for i in numbers] if self.indices else ()
        return PromptBatch(templates, concepts, anchors, indices)

    @property
    def prompts(self) -> list[Phrase]:
        """The sentences with the concepts."""
        return [fill_template(t, c) for t, c in zip(self.templates, self.concepts, strict=True)]

    @property
    def anchor_prompts(self) -> list[Phrase]:
        """The sentences with the anchors in the concepts' place."""
        return [fill_template(t, a) for t, a in zip(self.templates, self.anchors, strict=True)]

    @property
    def wordless_prompts(self) -> list[Phrase]:
        """The sentences with an empty place: a style's are about the thing in no style."""
        return [fill_template(template, "") for template in self.templates]

    @property
    def anchor_or_empty_prompts(self) -> list[Phrase]:
        """`anchor_prompts`, with the empty prompt where a concept has no anchor."""
        pairs = zip(self.anchor_prompts, self.anchors, strict=True)
        return [target if anchor else Phrase("", 0, 0) for target, anchor in pairs]


def shortened_names(names: Sequence[str]) -> str:
    """A list of names, shortened to ``dagger, bomb, bow and 97 more`` beyond three."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def check_concepts(concepts: Sequence[Concept], owner: str) -> None:
    """Raises unless there are `Concept` objects, each once, none of which is another's anchor.

    Names are compared in any case, and with anchors in any number.

    Raises:
        ErasureError: With the concepts in question.
    """
    if not concepts:
        raise ErasureError(
            f"{owner} needs at least one concept; found none. Pass concepts=[Concept('cigarette')]"
            " (command line: --model.concepts '[{name: cigarette}]')."
        )
    if others := [c for c in concepts if not isinstance(c, Concept)]:
        raise ErasureError(
            f"{owner} needs concepts as Concept(name, anchor); found {others[0]!r} in the list."
        )
    counts = Counter(folded(c.name) for c in concepts)
    if repeated := sorted(name for name, count in counts.items() if count > 1):
        raise ErasureError(
            f"{owner} needs each concept once; found {', '.join(repeated)} more than once."
        )
    erased = naming(c.name for c in concepts)
    if clash := sorted({c.anchor for c in concepts if erased(c.anchor)}):
        raise ErasureError(
            f"{owner} would erase its own anchors; found {', '.join(clash)} as concept and as"
            " anchor. Choose another anchor."
        )
