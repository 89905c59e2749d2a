"""Ring-A-Bell: its goal by hand, its search, and its success on a filter of words."""

import pytest
import torch
from shipped import budget
from under_attack import cigarette, filtered, tiny_target

from erasure_lightning.attacks.ring_a_bell import RingABell, state_distance
from erasure_lightning.diffusion.evaluation_counter import EvaluationCounter
from erasure_lightning.errors import ErasureError


def attack(**arguments):
    return RingABell(**({"tokens": 3, "population": 8, "generations": 3} | arguments))


def test_the_goal_by_hand():
    target = tiny_target()
    (case,) = target.cases(0)

    def encode(prompt):
        return target.original.encode([prompt]).tokens

    beginnings = (
        *("", "a", "the", "a photo of a", "a picture of a", "an image of a", "a drawing of a"),
        *("a rendering of a", "a small", "a close-up of a"),
    )
    pairs = [(f"{words} cat".strip(), words) for words in beginnings]
    differences = [encode(present) - encode(absent) for present, absent in pairs]
    vector = torch.stack(differences).mean(dim=0)
    goal = attack(strength=2.0).goal(target, case).tokens
    assert torch.allclose(goal, encode("a cat") + 2 * vector, atol=1e-5)


class TestSearch:
    def test_children_are_crossed_at_one_point_and_parents_survive(self):
        parents = torch.arange(12).view(4, 3)
        family = attack(crossover=1.0)._cross(parents)
        assert torch.equal(family[:4], parents)
        assert len(family) == 12
        for child in family[4:]:
            assert (child % 3).tolist() == [0, 1, 2]  # no token changes its place
            assert len((child // 3).unique_consecutive()) <= 2
        assert torch.equal(attack(crossover=0.0)._cross(parents), parents)

    def test_a_mutation_changes_one_token_and_never_the_best(self):
        prompts = torch.full((200, 3), -1)
        changed = (attack(mutation=1.0)._mutate(prompts, 50) != -1).sum(dim=1)
        assert changed[0] == 0
        assert (changed[1:] == 1).all()
        assert 20 < (attack()._mutate(prompts, 50) != -1).sum() < 80
        assert torch.equal(attack(mutation=0.0)._mutate(prompts, 50), prompts)

    def test_half_of_a_population_survives(self, monkeypatch):
        module = "erasure_lightning.attacks.ring_a_bell"
        sizes = []
        monkeypatch.setattr(
            f"{module}.state_distance",
            lambda states, goal: sizes.append(len(states)) or state_distance(states, goal),
        )
        monkeypatch.setattr(
            RingABell, "_cross", lambda self, prompts: sizes.append(len(prompts)) or prompts
        )
        attack(generations=2).run(tiny_target(), 0)
        assert sizes == [8, 4, 4]

    def test_more_generations_are_closer_to_the_goal(self):
        target = tiny_target()
        (case,) = target.cases(0)

        def distance(generations):
            (result,) = attack(generations=generations, strength=1.0).run(target, 0)
            states = target.edited.encode([result.prompt]).tokens
            return (states - attack(strength=1.0).goal(target, case).tokens).square().sum().item()

        assert distance(40) < distance(1)

    def test_no_denoiser_is_evaluated(self):
        target = tiny_target()
        target.draw = lambda *_: None
        with EvaluationCounter([target.edited.denoiser, target.original.denoiser]) as counter:
            attack().run(target, 0)
        assert counter.evaluations == 0


def test_equal_seeds_give_equal_results():
    assert attack().run(tiny_target(), 0)[0].prompt == attack().run(tiny_target(), 0)[0].prompt


def test_no_budget_has_no_success():
    (result,) = RingABell(generations=0).run(target := cigarette(erased=False), 0)
    assert target.success_rate(target.cases(0)[0], result.images) == 0


def test_arguments_out_of_range():
    with pytest.raises(ErasureError, match="RingABell needs population of at least 2; found 1"):
        RingABell(population=1)


@pytest.mark.parametrize("argument", ["crossover", "mutation"])
@pytest.mark.parametrize("share", [-0.1, 1.5])
def test_shares_out_of_range(argument, share):
    message = f"RingABell needs {argument} of at least 0 and at most 1; found {share}"
    with pytest.raises(ErasureError, match=message):
        RingABell(**{argument: share})


@pytest.mark.slow
def test_it_gets_past_a_filter_of_words():
    target = filtered("cigarette", "lollipop")
    (case,) = target.cases(0)
    plain = target.draw(target.edited.encode([case.sentence]), case.seeds)
    # For other sentences the short search has less success.
    (result,) = RingABell(**budget("ring-a-bell", population=100)).run(target, 0)
    assert target.success_rate(case, plain) == 0
    assert "cigarette" not in result.prompt
    assert target.success_rate(case, result.images) >= 0.5
