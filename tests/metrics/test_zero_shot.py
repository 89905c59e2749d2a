from types import SimpleNamespace

import pytest
from tiny_scorers import KnownScorer

from erasure_lightning.concepts.concept import Concept
from erasure_lightning.concepts.vocabulary import Vocabulary
from erasure_lightning.concepts.worlds import Label, World
from erasure_lightning.metrics.zero_shot import ZeroShotClassifier

LABELS = ("dog", "dog face", "key", "star")
WORLD = World(
    name="garden", root=None, package="", labels=tuple(Label(n, "", ("pet",) if "dog" in n else ()) for n in LABELS),
    styles=("ink", "oil"), steps=2, guidance=1.0, size=8, captions={"label": ["{}", "a {}"], "style": []},
)  # fmt: skip


def texts(scorer, question):
    """The right answers of a question, in words."""
    names = {place: text for text, place in scorer.known.items()}
    return {
        names[int(row.argmax())]
        for row, right in zip(question.labels, question.right, strict=True)
        if right
    }


@pytest.fixture
def scorer():
    return KnownScorer()


def test_twins_count_as_one(scorer):
    judge = ZeroShotClassifier(scorer, Vocabulary(WORLD, [Concept("dog")]), ["key"])
    assert texts(scorer, judge.question("efficacy", "")) == {"a dog", "a dog face"}
    assert texts(scorer, judge.question("generality", "")) == {"a dog", "a dog face"}
    assert texts(scorer, judge.question("specificity", "key")) == {"a key"}


def test_neighbours_the_world_does_not_know_become_labels(scorer):
    judge = ZeroShotClassifier(scorer, Vocabulary(WORLD, [Concept("dog")]), ["wrench", "pet"])
    assert judge.labels == (*LABELS, "wrench")
    assert texts(scorer, judge.question("neighbours", "wrench")) == {"a wrench"}
    assert texts(scorer, judge.question("neighbours", "pet")) == {"a dog", "a dog face"}


def test_a_style_is_told_from_the_worlds_styles_on_the_same_thing(scorer):
    question = ZeroShotClassifier(
        scorer, Vocabulary(WORLD, [Concept("Ink", kind="style")]), []
    ).question("efficacy", "key")
    assert texts(scorer, question) == {"a key, ink style"}
    assert len(question.labels) == 2


def test_without_a_world_a_style_is_told_from_none(scorer):
    question = ZeroShotClassifier(
        scorer, Vocabulary(None, [Concept("Van Gogh", kind="style")]), []
    ).question("efficacy", "cat")
    assert question.right.tolist() == [True, False]
    assert texts(scorer, question) == {"a cat, Van Gogh style"}


def test_labels_are_embedded_once(scorer):
    calls = []
    counting = SimpleNamespace(texts=lambda t: calls.append(t) or scorer.texts(t))
    judge = ZeroShotClassifier(counting, Vocabulary(WORLD, [Concept("dog")]), [])
    for answer in ("key", "star", "key"):
        judge.question("specificity", answer)
    assert len(calls) == 1
    assert judge.text("a key") is judge.text("a key")
