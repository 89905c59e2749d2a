"""Concept inversion's promises: where the word stands, its budget, and that it learns a word for
what was erased.
"""

import pytest
import torch
from under_attack import CAT, cigarette, tiny_target

from erasure_lightning.attacks.concept_inversion import ConceptInversion, asked, own_rows
from erasure_lightning.attacks.prompt_slots import Slots
from erasure_lightning.concepts.concept import Concept
from erasure_lightning.diffusion.evaluation_counter import EvaluationCounter
from erasure_lightning.errors import ErasureError


def attack(**arguments):
    return ConceptInversion(**({"steps": 3, "examples": 2} | arguments))


def test_a_word_s_own_embedding_asks_for_it():
    model = tiny_target().edited
    row = own_rows(model, "star")
    assert torch.allclose(
        asked(Slots(model, "a photo of a {}", 1), row).tokens,
        model.encode(["a photo of a star"]).tokens,
    )


def test_it_begins_at_the_mean_of_the_concept_s_words():
    model = tiny_target().edited
    assert torch.allclose(
        own_rows(model, "cat star")[0], (own_rows(model, "cat")[0] + own_rows(model, "star")[0]) / 2
    )


def test_the_budget_is_kept():
    target = tiny_target()
    with EvaluationCounter([target.edited.denoiser]) as tally:
        attack().run(target, 0)
    assert tally.backwards == 3 * 2


def test_equal_seeds_learn_the_same_and_the_target_is_left_as_it_was():
    target = tiny_target()
    before = target.edited.fingerprint()
    one, two = (attack().run(target, 0)[0].tensors["embedding.0"] for _ in range(2))
    assert torch.equal(one, two)
    assert target.edited.fingerprint() == before
    assert all(p.grad is None for p in target.edited.parameters())


def test_no_budget_asks_with_the_concept_s_own_word():
    target = tiny_target()
    (case,), (found,) = target.cases(0), attack(steps=0).run(target, 0)
    assert torch.allclose(
        found.pictures, target.draw(target.edited.encode([case.sentence]), case.seeds), atol=1e-6
    )


def test_a_style_s_word_is_learned_on_its_thing():
    (found,) = attack().run(tiny_target([*CAT[:0], Concept("flat", kind="style")]), 0)
    assert found.tensors["embedding.0"].shape == (1, 32)


def test_arguments_out_of_range():
    with pytest.raises(
        ErasureError, match="ConceptInversion needs examples of at least 1; found 0"
    ):
        ConceptInversion(examples=0)


@pytest.mark.slow
def test_it_learns_a_word_for_an_erased_cigarette_and_no_budget_does_not():
    target = cigarette(pictures=2)
    (case,) = target.cases(0)
    before, after = (
        target.share(case, ConceptInversion(steps=n).run(target, 0)[0].pictures) for n in (0, 30)
    )
    assert before == 0
    assert after >= 0.5


@pytest.mark.slow
def test_it_learns_a_word_where_nothing_was_erased():
    (found,) = ConceptInversion(steps=30).run(target := cigarette(erased=False, pictures=2), 0)
    assert target.share(target.cases(0)[0], found.pictures) >= 0.5
