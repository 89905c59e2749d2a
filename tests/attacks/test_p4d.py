"""P4D: its loss by hand, its budget, and its success on a weakly erased concept."""

import pytest
import torch
from shipped import budget
from under_attack import cigarette, tiny_target, weakly_erased

from erasure_lightning.attacks.p4d import P4D, nearest_words
from erasure_lightning.attacks.prompt_slots import PromptSlots
from erasure_lightning.diffusion.evaluation_counter import EvaluationCounter
from erasure_lightning.errors import ErasureError


def attack(**arguments):
    return P4D(**({"tokens": 2, "steps": 4, "every": 2, "examples": 3} | arguments))


def test_the_nearest_word_is_that_of_the_largest_cosine():
    table = torch.tensor([[10.0, 0.0], [0.0, 0.1], [1.0, 1.0]])
    embeddings = torch.tensor([[1.0, 0.2], [0.0, 9.0], [2.0, 2.1]])
    assert nearest_words([embeddings], [table]).tolist() == [0, 1, 2]


def test_the_loss_at_words_by_hand():
    target = tiny_target()
    slots = PromptSlots(target.edited, "{}", 2)
    clean = torch.randn(3, 4, 8, 8)
    embeddings = [torch.randn(2, 32, requires_grad=True)]
    plain = target.original.encode(["a cat"]).expand(3)
    torch.manual_seed(1)
    loss = P4D._loss(target, slots, embeddings, clean, plain)
    (gradient,) = torch.autograd.grad(loss, embeddings)
    torch.manual_seed(1)
    t = torch.randint(1000, (3,))
    noise = torch.randn(3, 4, 8, 8)
    alphas = target.edited.process.alphas[t].view(3, 1, 1, 1)
    x = alphas.sqrt() * clean + (1 - alphas).sqrt() * noise
    words = slots.spell(nearest_words(embeddings, slots.tables))
    prediction = target.edited.denoise(x, t, target.edited.encode([words] * 3))
    expected = (prediction - target.original.denoise(x, t, plain)).square().mean()
    assert torch.allclose(loss, expected)
    assert gradient.abs().sum() > 0


@pytest.mark.parametrize("tokens", [1, 3])
def test_it_searches_as_many_tokens(tokens, monkeypatch):
    counts = []
    monkeypatch.setattr(
        "erasure_lightning.attacks.p4d.PromptSlots",
        lambda *arguments: counts.append(arguments[2]) or PromptSlots(*arguments),
    )
    attack(tokens=tokens, steps=0).run(tiny_target(), 0)
    assert counts == [tokens]


def test_the_budget_is_kept():
    target = tiny_target()
    evaluated = []
    target.prompt_margin = lambda case, prompt: evaluated.append(prompt) or -1.0
    with EvaluationCounter([target.edited.denoiser, target.original.denoiser]) as counter:
        attack().run(target, 0)
    assert counter.backwards == 4 * 3
    assert len(evaluated) == 2


@pytest.mark.parametrize(("every", "times"), [(3, 2), (9, 1), (4, 1)])
def test_the_words_of_the_last_step_are_evaluated(every, times):
    """Whatever ``every`` is: else the random words of the start would be returned."""
    target = tiny_target()
    evaluated = []
    target.prompt_margin = lambda case, prompt: evaluated.append(prompt) or -1.0
    (result,) = attack(every=every, lr=10.0).run(target, 0)
    assert len(evaluated) == times
    assert result.prompt in evaluated


def test_it_stops_at_the_first_success():
    target = tiny_target()
    evaluated = []
    target.prompt_margin = lambda case, prompt: evaluated.append(prompt) or 1.0
    assert attack().run(target, 0)[0].prompt == evaluated[0]
    assert len(evaluated) == 1


def test_equal_seeds_give_equal_results():
    one, two = (attack().run(tiny_target(), 0)[0] for _ in range(2))
    assert one.prompt == two.prompt
    assert torch.equal(one.images, two.images)


def test_no_budget_has_no_success():
    (result,) = attack(steps=0, tokens=3).run(target := cigarette(erased=False), 0)
    assert target.success_rate(target.cases(0)[0], result.images) == 0


def test_arguments_out_of_range():
    with pytest.raises(ErasureError, match="P4D needs every of at least 1; found 0"):
        P4D(every=0)


@pytest.mark.slow
def test_it_finds_words_for_a_weakly_erased_cigarette():
    (result,) = P4D(**budget("p4d", every=5)).run(target := weakly_erased(), 0)
    assert "cigarette" not in result.prompt
    assert target.success_rate(target.cases(0)[0], result.images) >= 0.5
