"""Misspelling: the names, the prompts, and what the original understands of them."""

import pytest
import torch
from under_attack import filtered, tiny_target

from erasure_lightning.attacks.misspelling import Misspelling, misspelled
from erasure_lightning.concepts.concept import Concept
from erasure_lightning.errors import ErasureError


def test_a_name_s_typing_errors():
    assert set(misspelled("cat")) == {
        *("act", "cta"),  # swapped
        *("ccat", "caat", "catt"),  # doubled
        *("at", "ct", "ca"),  # left out
    }
    assert "aab" not in misspelled("aab")


def test_spaces_are_neither_swapped_nor_left_out():
    names = misspelled("a bc")
    assert all(name.count(" ") == 1 and name.split()[0] in ("a", "aa") for name in names)
    assert misspelled("7 !") == []


def test_prompts_are_random_and_the_best_comes_first():
    target = tiny_target(images=3)
    (case,) = target.cases(0)
    (result,) = Misspelling(variants=4).run(target, 0)
    assert len(result.images) == 4 * 3
    assert all(len(images) == 4 * 3 for n, images in result.controls.items() if n != "no prompt")
    first = target.generate(target.edited.encode([result.prompt]), case.seeds)
    assert torch.equal(result.images[:3], first)
    torch.manual_seed(0)
    drawn = Misspelling(variants=4).words(case)
    assert len(set(drawn)) == 4
    assert set(drawn) < set(misspelled("cat"))
    assert Misspelling(variants=4).words(case) != drawn
    assert len(Misspelling(variants=99).words(case)) == len(misspelled("cat"))


def test_only_the_name_is_misspelled():
    """Not its letters in *image*."""
    (result,) = Misspelling(variants=1).run(tiny_target([Concept("mage")]), 1)
    before, _, name = result.prompt.rpartition(" ")
    assert (before, name in misspelled("mage")) == ("an image of a", True)


def test_the_best_prompt_has_the_highest_margin():
    target = tiny_target()
    (case,) = target.cases(0)
    (result,) = Misspelling(variants=99).run(target, 0)
    prompts = [case.prompt.replace("cat", name) for name in misspelled("cat")]
    assert target.prompt_margin(case, result.prompt) == pytest.approx(
        max(target.prompt_margin(case, prompt) for prompt in prompts)
    )


def test_numbers_out_of_range():
    with pytest.raises(ErasureError, match="Misspelling needs variants of at least 1; found 0"):
        Misspelling(variants=0)
    target = tiny_target(concepts=[Concept("42")])
    with pytest.raises(ErasureError, match="Misspelling needs a name with letters; found '42'"):
        Misspelling().run(target, 0)


@pytest.mark.slow
def test_it_passes_a_filter_of_the_word_as_often_as_the_original_understands_it():
    pytest.importorskip("erasure_lightning_emoji_world")
    target = filtered("cigarette", "lollipop")
    (case,) = target.cases(0)
    (result,) = Misspelling(variants=2).run(target, 0)
    share, control = (
        target.success_rate(case, images) for images in (result.images, result.controls["original"])
    )
    assert share == control > 0
    assert target.success_rate(case, result.controls["shuffled"]) == 0
    assert target.success_rate(case, result.controls["no prompt"]) == 0
