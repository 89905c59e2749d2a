"""UnlearnDiffAtk: its parts by hand, its budget, and its success on a weakly erased concept."""

import pytest
import torch
from shipped import budget
from under_attack import cigarette, tiny_target, weakly_erased

from erasure_lightning.attacks.unlearn_diff_atk import (
    SampledWord,
    UnlearnDiffAtk,
    interval_midpoints,
    project_to_simplex,
)
from erasure_lightning.diffusion.evaluation_counter import EvaluationCounter
from erasure_lightning.errors import ErasureError


def attack(**arguments):
    return UnlearnDiffAtk(**({"tokens": 2, "times": 2, "steps": 3} | arguments))


class TestParts:
    def test_the_projection_is_the_nearest_point_of_the_simplex(self):
        rows = torch.randn(20, 7)
        projected = project_to_simplex(rows)
        assert torch.allclose(projected.sum(dim=1), torch.ones(20), atol=1e-6)
        assert (projected >= 0).all()
        others = torch.rand(500, 7).softmax(dim=1)
        assert (
            torch.cdist(rows, others).amin(dim=1) >= (rows - projected).norm(dim=1) - 1e-6
        ).all()
        assert torch.allclose(project_to_simplex(others), others, atol=1e-6)

    def test_words_are_sampled_by_weight_with_straight_through_gradients(self):
        weights = torch.tensor([[0.0, 1.0, 0.0], [0.5, 0.0, 0.5]], requires_grad=True)
        sampled = torch.stack([SampledWord.apply(weights) for _ in range(200)])
        assert (sampled[:, 0] == torch.tensor([0.0, 1.0, 0.0])).all()
        assert sampled[:, 1].mean(dim=0).tolist() == pytest.approx([0.5, 0.0, 0.5], abs=0.15)
        (SampledWord.apply(weights) * torch.tensor([0.5, -3.0, 7.0])).sum().backward()
        assert torch.equal(weights.grad, torch.tensor([[0.5, -1.0, 1.0]] * 2))

    def test_the_times_are_those_of_the_official_code(self):
        times = tiny_target().edited.process.at(interval_midpoints(50))
        assert torch.allclose(times, torch.arange(10.0, 1000, 20))


def test_the_budget_is_kept():
    target = tiny_target()
    target.prompt_margin = lambda case, prompt: -1.0
    with EvaluationCounter([target.edited.denoiser]) as counter:
        attack().run(target, 0)
    assert counter.backwards == 2 * 3


def test_it_stops_at_the_first_success():
    target = tiny_target()
    prompts = []
    target.prompt_margin = lambda case, prompt: prompts.append(prompt) or len(prompts) - 1.5
    (result,) = attack(times=5).run(target, 0)
    assert len(prompts) == 2
    assert result.prompt == prompts[1]
    assert result.prompt.endswith(" a cat")


def test_without_success_the_highest_margin_is_returned():
    target = tiny_target()
    prompts = []
    margins = [-0.9, -0.1, -0.5]
    target.prompt_margin = lambda case, prompt: prompts.append(prompt) or margins[len(prompts) - 1]
    assert attack().run(target, 0)[0].prompt == prompts[1]


def test_equal_seeds_give_equal_results():
    one, two = (attack().run(tiny_target(), 0)[0] for _ in range(2))
    assert one.prompt == two.prompt
    assert torch.equal(one.images, two.images)


def test_no_budget_uses_the_plain_prompt():
    assert attack(times=0).run(tiny_target(), 0)[0].prompt == "a cat"


@pytest.mark.parametrize("argument", [{"tokens": 0}, {"times": -1}, {"steps": -1}], ids=str)
def test_arguments_out_of_range(argument):
    with pytest.raises(ErasureError, match="UnlearnDiffAtk needs"):
        UnlearnDiffAtk(**argument)


def test_an_unedited_model_needs_no_prefix():
    (result,) = attack().run(target := cigarette(erased=False), 0)
    assert result.prompt == "a cigarette"
    assert target.success_rate(target.cases(0)[0], result.images) == 1


@pytest.mark.slow
def test_it_brings_a_weakly_erased_cigarette_back_and_no_budget_does_not():
    target = weakly_erased()
    (case,) = target.cases(0)
    attacks = [UnlearnDiffAtk(**budget("unlearn-diff-atk", times=times)) for times in (0, 8)]
    results = [attack.run(target, 0)[0] for attack in attacks]
    plain, attacked = (target.success_rate(case, result.images) for result in results)
    assert plain == 0
    assert attacked >= 0.5
