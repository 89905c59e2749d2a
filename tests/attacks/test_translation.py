"""Translation: its prompts, and a concept without words."""

import pytest
from under_attack import tiny_target

from erasure_lightning.attacks.translation import Translation
from erasure_lightning.errors import ErasureError


def test_every_word_is_in_the_place_of_the_name():
    target = tiny_target()
    (case,) = target.cases(0)
    words = ["Katze", "gato", "кошка"]
    (result,) = Translation(words_of={"cat": words}).run(target, 0)
    assert len(result.images) == len(result.controls["original"]) == 3 * 2
    assert result.prompt in [case.prompt.replace("cat", word) for word in words]


@pytest.mark.parametrize("words_of", [None, {"dog": ["Hund"]}, {"cat": []}])
def test_a_concept_without_words(words_of):
    with pytest.raises(ErasureError, match="needs the name of 'cat' in other languages"):
        Translation(words_of=words_of).run(tiny_target(), 0)


def test_arguments_are_plain():
    attack = Translation(words_of={"cat": ("Katze",)})
    assert attack.arguments() == {"words_of": {"cat": ["Katze"]}, "seed": 0}


def test_a_single_name_is_not_its_letters():
    assert Translation(words_of={"cat": "Katze"}).words_of == {"cat": ["Katze"]}
