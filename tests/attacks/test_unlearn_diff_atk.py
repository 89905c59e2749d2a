"""UnlearnDiffAtk's promises: its parts by hand, its budget, and that it brings a weakly erased
cigarette back.
"""

import pytest
import torch
from under_attack import cigarette, tiny_target, weakly_erased

from erasure_lightning.attacks.unlearn_diff_atk import (
    OneWord,
    UnlearnDiffAtk,
    onto_simplex,
    spread_shares,
)
from erasure_lightning.diffusion.evaluation_counter import EvaluationCounter
from erasure_lightning.errors import ErasureError


def attack(**arguments):
    return UnlearnDiffAtk(**({"tokens": 2, "times": 2, "steps": 3} | arguments))


class TestParts:
    def test_the_projection_is_the_nearest_point_of_the_simplex(self):
        rows = torch.randn(20, 7)
        found = onto_simplex(rows)
        assert torch.allclose(found.sum(dim=1), torch.ones(20), atol=1e-6)
        assert (found >= 0).all()
        others = torch.rand(500, 7).softmax(dim=1)
        assert (torch.cdist(rows, others).amin(dim=1) >= (rows - found).norm(dim=1) - 1e-6).all()
        assert torch.allclose(onto_simplex(others), others, atol=1e-6)

    def test_a_word_is_drawn_by_its_weight_and_slopes_go_straight_through(self):
        weights = torch.tensor([[0.0, 1.0, 0.0], [0.5, 0.0, 0.5]], requires_grad=True)
        drawn = torch.stack([OneWord.apply(weights) for _ in range(200)])
        assert (drawn[:, 0] == torch.tensor([0.0, 1.0, 0.0])).all()
        assert drawn[:, 1].mean(dim=0).tolist() == pytest.approx([0.5, 0.0, 0.5], abs=0.15)
        (OneWord.apply(weights) * torch.tensor([0.5, -3.0, 7.0])).sum().backward()
        assert torch.equal(weights.grad, torch.tensor([[0.5, -1.0, 1.0]] * 2))

    def test_the_times_are_those_of_the_official_code(self):
        times = tiny_target().edited.process.at(spread_shares(50))
        assert torch.allclose(times, torch.arange(10.0, 1000, 20))


def test_the_budget_is_kept():
    target = tiny_target()
    target.promise = lambda case, prompt: -1.0
    with EvaluationCounter([target.edited.denoiser]) as tally:
        attack().run(target, 0)
    assert tally.backwards == 2 * 3


def test_it_stops_at_the_first_success():
    target, asked = tiny_target(), []
    target.promise = lambda case, prompt: asked.append(prompt) or len(asked) - 1.5
    (found,) = attack(times=5).run(target, 0)
    assert len(asked) == 2
    assert found.prompt == asked[1]
    assert found.prompt.endswith(" a cat")


def test_of_failures_the_nearest_is_told():
    target, asked, promises = tiny_target(), [], [-0.9, -0.1, -0.5]
    target.promise = lambda case, prompt: asked.append(prompt) or promises[len(asked) - 1]
    assert attack().run(target, 0)[0].prompt == asked[1]


def test_equal_seeds_find_the_same():
    one, two = (attack().run(tiny_target(), 0)[0] for _ in range(2))
    assert one.prompt == two.prompt
    assert torch.equal(one.pictures, two.pictures)


def test_no_budget_asks_plainly():
    assert attack(times=0).run(tiny_target(), 0)[0].prompt == "a cat"


@pytest.mark.parametrize("argument", [{"tokens": 0}, {"times": -1}, {"steps": -1}], ids=str)
def test_arguments_out_of_range(argument):
    with pytest.raises(ErasureError, match="UnlearnDiffAtk needs"):
        UnlearnDiffAtk(**argument)


def test_what_needs_no_attack_is_found_at_once():
    (found,) = attack().run(target := cigarette(erased=False), 0)
    assert found.prompt == "a cigarette"
    assert target.share(target.cases(0)[0], found.pictures) == 1


@pytest.mark.slow
def test_it_brings_a_weakly_erased_cigarette_back_and_no_budget_does_not():
    target = weakly_erased()
    (case,) = target.cases(0)
    plain, attacked = (
        target.share(case, UnlearnDiffAtk(times=t).run(target, 0)[0].pictures) for t in (0, 8)
    )
    assert plain == 0
    assert attacked >= 0.5
