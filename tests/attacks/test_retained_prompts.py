"""Sentences to train attacks on: none about a concept or its domain."""

import pytest

from erasure_lightning.attacks.retained_prompts import draw_retained_prompts
from erasure_lightning.concepts.concept import Concept
from erasure_lightning.concepts.vocabulary import Vocabulary
from erasure_lightning.concepts.worlds import find_world
from erasure_lightning.errors import ErasureError


def test_none_contains_a_word_of_the_concepts_or_their_domains():
    erased = [Concept("hot dog", "pizza", domain=["glass"])]
    prompts = draw_retained_prompts(Vocabulary(None, erased), 400)
    words = {word for prompt in prompts for word in prompt.split()}
    assert not words & {"hot", "dog", "glass", "wine"}
    assert {"cat", "fork", "spoon"} <= words


def test_while_a_style_is_erased_all_name_another():
    world = find_world("emoji-world")
    if world is None:
        pytest.skip("needs the emoji world")
    erased = [Concept("twemoji", "noto", kind="style")]
    prompts = draw_retained_prompts(Vocabulary(world, erased), 50)
    styles = [style for style in world.styles if style != "twemoji"]
    assert all(any(f"{style} style" in prompt for style in styles) for prompt in prompts)
    assert not any("twemoji" in prompt for prompt in prompts)


def test_no_label_to_train_on():
    vocabulary = Vocabulary(None, [Concept("everything")])
    vocabulary.labels = ("everything", "nearly everything")
    with pytest.raises(ErasureError, match="found none that shares no word"):
        draw_retained_prompts(vocabulary, 1)
