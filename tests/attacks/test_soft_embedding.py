"""Soft embedding: its budget, its tensors, and its success on an erased concept."""

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
    with EvaluationCounter([target.edited.denoiser]) as counter:
        attack().run(target, 0)
    assert counter.backwards == 3 * 2


def test_the_saved_tensors_generate_the_images():
    target = tiny_target()
    (case,) = target.cases(0)
    (result,) = attack().run(target, 0)
    soft = target.edited.encode([case.prompt]).with_tokens(result.tensors["tokens"])
    assert torch.equal(result.images, target.generate(soft, case.seeds))
    assert result.prompt is None


def test_it_lowers_the_denoising_loss():
    target = tiny_target()
    (case,) = target.cases(0)
    clean = target.examples(case, 8)
    t = torch.arange(50, 850, 100)

    def loss(steps):
        (result,) = attack(steps=steps, lr=0.1).run(target, 0)
        torch.manual_seed(0)
        soft = target.edited.encode([case.prompt]).with_tokens(result.tensors["tokens"])
        return target.denoising_loss(soft, clean, t).item()

    assert loss(40) < loss(0)


def test_equal_seeds_give_equal_results_and_the_target_is_not_modified():
    target = tiny_target()
    before = target.edited.fingerprint()
    one, two = (attack().run(target, 0)[0].tensors["tokens"] for _ in range(2))
    assert torch.equal(one, two)
    assert target.edited.fingerprint() == before


def test_text_encoders_that_are_trained_are_left_out():
    """As those of a method that has just trained them."""
    target, frozen = tiny_target(), tiny_target()
    target.edited.text_encoders.requires_grad_(True)
    one, two = (attack().run(each, 0)[0].tensors["tokens"] for each in (target, frozen))
    assert torch.allclose(one, two, atol=1e-5)
    assert not any(p.grad is not None for p in target.edited.parameters())


def test_no_budget_uses_the_plain_prompt():
    target = tiny_target()
    (case,) = target.cases(0)
    (result,) = attack(steps=0).run(target, 0)
    plain = target.generate(target.edited.encode([case.prompt]), case.seeds)
    assert torch.equal(result.images, plain)


def test_arguments_out_of_range():
    with pytest.raises(ErasureError, match="SoftEmbedding needs steps of at least 0; found -1"):
        SoftEmbedding(steps=-1)


@pytest.mark.slow
def test_it_brings_an_erased_cigarette_back_and_no_budget_does_not():
    target = cigarette(images=2)
    (case,) = target.cases(0)
    results = [SoftEmbedding(steps=steps).run(target, 0)[0] for steps in (0, 40)]
    before, after = (target.success_rate(case, result.images) for result in results)
    assert before == 0
    assert after >= 0.5
