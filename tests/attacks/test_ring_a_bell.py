"""Ring-A-Bell: its goal by hand, its search, and its success on a filter of words."""

import pytest
import torch
from shipped import budget
from under_attack import cigarette, filtered, tiny_target

from erasure_lightning.attacks.ring_a_bell import RingABell, state_distance
from erasure_lightning.backbones.conditioning import PADDING
from erasure_lightning.backbones.tiny import TinyBackbone, TinyPixArt
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


@pytest.mark.parametrize(("family", "counts"), [(TinyBackbone, True), (TinyPixArt, False)])
def test_states_of_padding_count_where_the_denoiser_reads_them(family, counts):
    model = family()
    prompts, goal = model.encode(["a photo of a cat", "cat", "star"]), model.encode(["a dog"])
    expected = state_distance(model, prompts, goal)
    assert expected.min() > 0
    for conditioning in (prompts, goal):
        padding = conditioning.positions(PADDING).unsqueeze(2)
        assert padding.any()
        moved = conditioning.with_tokens(conditioning.tokens + padding)
        both = (moved, goal) if conditioning is prompts else (prompts, moved)
        assert (not torch.equal(state_distance(model, *both), expected)) == counts


def test_where_padding_is_masked_distances_are_of_what_both_prompts_have():
    model = TinyPixArt()
    prompts, goal = model.encode(["a photo of a cat", "cat"]), model.encode(["a dog"])
    lengths = (~prompts.positions(PADDING)).sum(dim=1).tolist()
    read = int((~goal.positions(PADDING)).sum())
    assert lengths[1] < read < lengths[0]
    scale = prompts.tokens.shape[1]
    expected = [
        (prompts.tokens[row, :count] - goal.tokens[0, :count]).square().sum().item() / count * scale
        for row, count in ((0, read), (1, lengths[1]))
    ]
    assert state_distance(model, prompts, goal).tolist() == pytest.approx(expected)


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
            lambda model, states, goal: (
                sizes.append(len(states)) or state_distance(model, states, goal)
            ),
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
        target.generate = lambda *_: None
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
    plain = target.generate(target.edited.encode([case.prompt]), case.seeds)
    # For other sentences the short search has less success.
    (result,) = RingABell(**budget("ring-a-bell", population=100)).run(target, 0)
    assert target.success_rate(case, plain) == 0
    assert "cigarette" not in result.prompt
    assert target.success_rate(case, result.images) >= 0.5
