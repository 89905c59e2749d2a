import re
from typing import get_args

import pytest

from erasure_lightning.concepts.concept import (
    TEMPLATES_BY_KIND,
    Concept,
    ConceptKind,
    PromptBatch,
    check_concepts,
    fill_template,
)
from erasure_lightning.errors import ErasureError


def test_phrases_remember_the_concept():
    assert fill_template("a photo of a {} here", "red heart") == (
        "a photo of a red heart here",
        13,
        22,
    )
    assert fill_template("a photo of a {}", "") == ("a photo of a", 12, 12)
    assert fill_template("a {} style car", "") == ("a style car", 1, 1)


def test_a_batch_puts_anchors_in_the_same_sentences():
    batch = PromptBatch(["a {}", "{} here"], ["cat", "red heart"], ["dog", ""])
    assert [p.text for p in batch.prompts] == ["a cat", "red heart here"]
    assert [p.text for p in batch.anchor_prompts] == ["a dog", " here"]


def test_styles_have_sentences_of_their_own():
    assert all("{thing}" in template for template in TEMPLATES_BY_KIND["style"])


def test_people_have_sentences_without_an_article():
    assert TEMPLATES_BY_KIND.keys() == set(get_args(ConceptKind))
    assert not any(re.search(r"\b(a|the) {}", template) for template in TEMPLATES_BY_KIND["person"])
    # The control.
    assert any(re.search(r"\b(a|the) {}", template) for template in TEMPLATES_BY_KIND["thing"])


def test_actions_have_sentences_in_which_somebody_does_them():
    assert all(
        re.search(r"^{}$|\b(person|people|someone|man|woman) {}", template)
        for template in TEMPLATES_BY_KIND["action"]
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": None}, "text as name; found None"),
        ({"anchor": ["dog"]}, r"text as anchor; found \['dog'\]"),
        # Its letters would be words.
        ({"domain": "kitten"}, "list of words as domain, such as .*; found 'kitten'"),
        ({"domain": None}, "list of words as domain, such as .*; found None"),
        ({"domain": ["kitten", 5]}, r"list of words as domain, such as .*; found \['kitten', 5\]"),
    ],
)
def test_fields_of_another_type_are_refused(arguments, message):
    with pytest.raises(ErasureError, match=message):
        Concept(**{"name": "cat", **arguments})


def test_an_unknown_kind_is_refused():
    message = (
        r"kind needs one of thing, style, person, action; found 'stlye'\. Did you mean 'style'"
    )
    with pytest.raises(ErasureError, match=message):
        Concept("Van Gogh", kind="stlye")
    assert Concept("smoking", kind="action").kind == "action"  # the control


def test_no_sentence_of_the_core_speaks_of_emojis():
    assert not [t for templates in TEMPLATES_BY_KIND.values() for t in templates if "emoji" in t]


@pytest.mark.parametrize(
    ("name", "anchor", "words"),
    [
        ("  ", "", "needs a name"),
        ("\u200b", "", "needs a name"),
        ("Cat", "cat", "itself as anchor"),
        ("red cat", " Red  Cats", "itself as anchor"),
    ],
)
def test_a_concept_that_erases_nothing_is_refused(name, anchor, words):
    with pytest.raises(ErasureError, match=words):
        Concept(name, anchor)


@pytest.mark.parametrize(
    ("concepts", "words"),
    [
        ([], "at least one concept; found none"),
        (["cat"], r"needs concepts as Concept\(name, anchor\); found 'cat' in the list"),
        ([Concept("cat"), Concept("Cat")], "found cat more than once"),
        ([Concept("red  cat"), Concept("\uff32ed cat\u200b")], "found red cat more than once"),
        ([Concept("Cat", "dog"), Concept("Dog", "bird")], "erase its own anchors; found dog"),
        ([Concept("cat", "Dogs"), Concept("dog")], "erase its own anchors; found Dogs"),
        ([Concept("cat", "cherry"), Concept("cherries")], "erase its own anchors; found cherry"),
        ([Concept("cat", "dog"), Concept("dog")], "erase its own anchors; found dog"),
    ],
)
def test_concepts_that_do_not_go_together(concepts, words):
    with pytest.raises(ErasureError, match=words):
        check_concepts(concepts, "SAGE")
