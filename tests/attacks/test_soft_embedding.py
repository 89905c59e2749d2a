"""The soft embedding's promises: its budget, that it needs no words, and that it brings an erased
cigarette back.
"""

import pytest
import torch
from under_attack import cigarette, tiny_target

from erasure_lightning.attacks.soft_embedding import SoftEmbedding
from erasure_lightning.diffusion.evaluation_counter import EvaluationCounter
from erasure_lightning.errors import ErasureError


def attack(**arguments):
    return SoftEmbedding(**({"steps": 3, "examples": 2} | arguments))


def test_the_budget_is_kept():
    target = tiny_target()
    with EvaluationCounter([target.edited.denoiser]) as tally:
        attack().run(target, 0)
    assert tally.backwards == 3 * 2


def test_what_is_kept_draws_the_pictures_without_any_words():
    target = tiny_target()
    (case,), (found,) = target.cases(0), attack().run(target, 0)
    soft = target.edited.encode([case.sentence]).with_tokens(found.tensors["tokens"])
    assert torch.equal(found.pictures, target.draw(soft, case.seeds))
    assert found.prompt is None


def test_it_lowers_the_denoising_loss():
    target = tiny_target()
    (case,) = target.cases(0)
    clean, t = target.examples(case, 8), torch.arange(50, 850, 100)

    def loss(steps):
        (found,) = attack(steps=steps, lr=0.1).run(target, 0)
        torch.manual_seed(0)
        soft = target.edited.encode([case.sentence]).with_tokens(found.tensors["tokens"])
        return target.denoising_loss(soft, clean, t).item()

    assert loss(40) < loss(0)


def test_equal_seeds_find_the_same_and_the_target_is_left_as_it_was():
    target = tiny_target()
    before = target.edited.fingerprint()
    one, two = (attack().run(target, 0)[0].tensors["tokens"] for _ in range(2))
    assert torch.equal(one, two)
    assert target.edited.fingerprint() == before


def test_no_budget_asks_plainly():
    target = tiny_target()
    (case,), (found,) = target.cases(0), attack(steps=0).run(target, 0)
    assert torch.equal(
        found.pictures, target.draw(target.edited.encode([case.sentence]), case.seeds)
    )


def test_arguments_out_of_range():
    with pytest.raises(ErasureError, match="SoftEmbedding needs steps of at least 0; found -1"):
        SoftEmbedding(steps=-1)


@pytest.mark.slow
def test_it_brings_an_erased_cigarette_back_and_no_budget_does_not():
    target = cigarette(pictures=2)
    (case,) = target.cases(0)
    before, after = (
        target.share(case, SoftEmbedding(steps=n).run(target, 0)[0].pictures) for n in (0, 40)
    )
    assert before == 0
    assert after >= 0.5
