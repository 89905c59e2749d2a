"""P4D's promises: its loss by hand, its budget, and that it finds words for a weakly erased
cigarette.
"""

import pytest
import torch
from under_attack import cigarette, tiny_target, weakly_erased

from erasure_lightning.attacks.p4d import P4D, nearest
from erasure_lightning.attacks.prompt_slots import Slots
from erasure_lightning.diffusion.evaluation_counter import EvaluationCounter
from erasure_lightning.errors import ErasureError


def attack(**arguments):
    return P4D(**({"tokens": 2, "steps": 4, "every": 2, "examples": 3} | arguments))


def test_the_nearest_word_is_that_of_the_largest_cosine():
    table = torch.tensor([[10.0, 0.0], [0.0, 0.1], [1.0, 1.0]])
    assert nearest([torch.tensor([[1.0, 0.2], [0.0, 9.0], [2.0, 2.1]])], [table]).tolist() == [
        0,
        1,
        2,
    ]


def test_the_loss_is_taken_at_words_between_both_models_predictions_by_hand():
    target = tiny_target()
    slots, clean = Slots(target.edited, "{}", 2), torch.randn(3, 4, 8, 8)
    soft = [torch.randn(2, 32, requires_grad=True)]
    plain = target.original.encode(["a cat"]).expand(3)
    torch.manual_seed(1)
    loss = P4D._loss(target, slots, soft, clean, plain)
    (slope,) = torch.autograd.grad(loss, soft)
    torch.manual_seed(1)
    t, noise = torch.randint(1000, (3,)), torch.randn(3, 4, 8, 8)
    alphas = target.edited.process.alphas[t].view(3, 1, 1, 1)
    x, words = (
        alphas.sqrt() * clean + (1 - alphas).sqrt() * noise,
        slots.spelt(nearest(soft, slots.tables)),
    )
    said = target.edited.denoise(x, t, target.edited.encode([words] * 3))
    assert torch.allclose(loss, (said - target.original.denoise(x, t, plain)).square().mean())
    assert slope.abs().sum() > 0


def test_the_budget_is_kept():
    target, tried = tiny_target(), []
    target.promise = lambda case, prompt: tried.append(prompt) or -1.0
    with EvaluationCounter([target.edited.denoiser, target.original.denoiser]) as tally:
        attack().run(target, 0)
    assert tally.backwards == 4 * 3
    assert len(tried) == 2


def test_it_stops_at_the_first_success():
    target, tried = tiny_target(), []
    target.promise = lambda case, prompt: tried.append(prompt) or 1.0
    assert attack().run(target, 0)[0].prompt == tried[0]
    assert len(tried) == 1


def test_equal_seeds_find_the_same():
    one, two = (attack().run(tiny_target(), 0)[0] for _ in range(2))
    assert one.prompt == two.prompt
    assert torch.equal(one.pictures, two.pictures)


def test_no_budget_finds_nothing():
    (found,) = attack(steps=0, tokens=3).run(target := cigarette(erased=False), 0)
    assert target.share(target.cases(0)[0], found.pictures) == 0


def test_arguments_out_of_range():
    with pytest.raises(ErasureError, match="P4D needs every of at least 1; found 0"):
        P4D(every=0)


@pytest.mark.slow
def test_it_finds_words_for_a_weakly_erased_cigarette():
    (found,) = P4D().run(target := weakly_erased(), 0)
    assert "cigarette" not in found.prompt
    assert target.share(target.cases(0)[0], found.pictures) >= 0.5
