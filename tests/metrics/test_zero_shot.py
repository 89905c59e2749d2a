from types import SimpleNamespace

import pytest
from tiny_scorers import KnownScorer

from erasure_lightning.concepts.concept import Concept
from erasure_lightning.concepts.vocabulary import Vocabulary
from erasure_lightning.concepts.worlds import Label, World
from erasure_lightning.metrics.zero_shot import ZeroShotClassifier

LABELS = ("dog", "dog face", "key", "star")
WORLD = World(
    name="garden",
    root=None,
    package="",
    labels=tuple(Label(name, "", ("pet",) if "dog" in name else ()) for name in LABELS),
    styles=("ink", "oil"),
    steps=2,
    guidance=1.0,
    size=8,
    captions={"label": ["{}", "a {}"], "style": []},
)


def texts(scorer, candidates):
    """Texts of the candidates that count."""
    names = {place: text for text, place in scorer.known.items()}
    return {
        names[int(row.argmax())]
        for row, right in zip(candidates.labels, candidates.right, strict=True)
        if right
    }


@pytest.fixture
def scorer():
    return KnownScorer()


def test_twins_count_as_one(scorer):
    classifier = ZeroShotClassifier(scorer, Vocabulary(WORLD, [Concept("dog")]), ["key"])
    assert texts(scorer, classifier.candidates("efficacy", "")) == {"a dog", "a dog face"}
    assert texts(scorer, classifier.candidates("generality", "")) == {"a dog", "a dog face"}
    assert texts(scorer, classifier.candidates("specificity", "key")) == {"a key"}


def test_neighbours_the_world_does_not_know_become_labels(scorer):
    classifier = ZeroShotClassifier(scorer, Vocabulary(WORLD, [Concept("dog")]), ["wrench", "pet"])
    assert classifier.labels == (*LABELS, "wrench")
    assert texts(scorer, classifier.candidates("neighbours", "wrench")) == {"a wrench"}
    assert texts(scorer, classifier.candidates("neighbours", "pet")) == {"a dog", "a dog face"}


def test_a_style_is_compared_with_the_world_s_styles_of_the_thing(scorer):
    vocabulary = Vocabulary(WORLD, [Concept("Ink", kind="style")])
    candidates = ZeroShotClassifier(scorer, vocabulary, []).candidates("efficacy", "key")
    assert texts(scorer, candidates) == {"a key, ink style"}
    assert len(candidates.labels) == 2


def test_without_a_world_a_style_is_compared_with_no_style(scorer):
    vocabulary = Vocabulary(None, [Concept("Van Gogh", kind="style")])
    candidates = ZeroShotClassifier(scorer, vocabulary, []).candidates("efficacy", "cat")
    assert candidates.right.tolist() == [True, False]
    assert texts(scorer, candidates) == {"a cat, Van Gogh style"}


def test_styles_of_every_thing(scorer):
    classifier = ZeroShotClassifier(
        scorer, Vocabulary(WORLD, [Concept("Ink", kind="style")]), ["wrench"]
    )
    shown = {f"a {label}, ink style" for label in (*LABELS, "wrench")}
    assert texts(scorer, classifier.styles) == shown
    assert len(classifier.styles.labels) == 2 * len(shown)


def test_labels_are_embedded_once(scorer):
    calls = []
    counting = SimpleNamespace(texts=lambda t: calls.append(t) or scorer.texts(t))
    classifier = ZeroShotClassifier(counting, Vocabulary(WORLD, [Concept("dog")]), [])
    for answer in ("key", "star", "key"):
        classifier.candidates("specificity", answer)
    assert len(calls) == 1
    assert classifier.text("a key") is classifier.text("a key")
