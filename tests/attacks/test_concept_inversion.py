"""Concept inversion: the place of the word, the budget, and success on an erased concept."""

import pytest
import torch
from under_attack import CAT, cigarette, tiny_target

from erasure_lightning.attacks.concept_inversion import ConceptInversion
from erasure_lightning.concepts.concept import Concept
from erasure_lightning.diffusion.evaluation_counter import EvaluationCounter
from erasure_lightning.errors import ErasureError
from erasure_lightning.training.prompt_words import encode_word, mean_embeddings


def attack(**arguments):
    return ConceptInversion(**({"steps": 3, "examples": 2} | arguments))


def test_a_word_s_own_embedding_gives_its_states():
    model = tiny_target().edited
    row = mean_embeddings(model, "star")
    conditioning = encode_word(model, ["a photo of a {}"], row)
    assert torch.allclose(conditioning.tokens, model.encode(["a photo of a star"]).tokens)


def test_it_starts_at_the_mean_of_the_concept_s_words():
    model = tiny_target().edited
    (both,), (cat,), (star,) = (
        mean_embeddings(model, words) for words in ("cat star", "cat", "star")
    )
    assert torch.allclose(both, (cat + star) / 2)


def test_the_budget_is_kept():
    target = tiny_target()
    with EvaluationCounter([target.edited.denoiser]) as counter:
        attack().run(target, 0)
    assert counter.backwards == 3 * 2


def test_equal_seeds_learn_the_same_and_the_target_is_not_modified():
    target = tiny_target()
    before = target.edited.fingerprint()
    one, two = (attack().run(target, 0)[0].tensors["embedding.0"] for _ in range(2))
    assert torch.equal(one, two)
    assert target.edited.fingerprint() == before
    assert all(p.grad is None for p in target.edited.parameters())


def test_no_budget_uses_the_concept_s_own_word():
    target = tiny_target()
    (case,) = target.cases(0)
    (result,) = attack(steps=0).run(target, 0)
    plain = target.generate(target.edited.encode([case.prompt]), case.seeds)
    assert torch.allclose(result.images, plain, atol=1e-6)


def test_the_word_stands_for_the_name_alone():
    """Not for the letters of *mage* in *image*."""
    target = tiny_target([Concept("mage")])
    (case,) = target.cases(1)
    (result,) = attack(steps=0).run(target, 1)
    word = mean_embeddings(target.edited, "mage")
    conditioning = encode_word(target.edited, ["an image of a {}"], word)
    assert torch.equal(result.images, target.generate(conditioning, case.seeds))


def test_a_style_s_word_is_learned_on_its_thing():
    (result,) = attack().run(tiny_target([*CAT[:0], Concept("flat", kind="style")]), 0)
    assert result.tensors["embedding.0"].shape == (1, 32)


def test_arguments_out_of_range():
    with pytest.raises(
        ErasureError, match="ConceptInversion needs examples of at least 1; found 0"
    ):
        ConceptInversion(examples=0)


@pytest.mark.slow
def test_it_learns_a_word_for_an_erased_cigarette_and_no_budget_does_not():
    target = cigarette(images=2)
    (case,) = target.cases(0)
    results = [ConceptInversion(steps=steps).run(target, 0)[0] for steps in (0, 30)]
    before, after = (target.success_rate(case, result.images) for result in results)
    assert before == 0
    assert after >= 0.5


@pytest.mark.slow
def test_it_learns_a_word_for_an_unedited_model():
    (result,) = ConceptInversion(steps=8).run(target := cigarette(erased=False, images=2), 0)
    assert target.success_rate(target.cases(0)[0], result.images) >= 0.5
