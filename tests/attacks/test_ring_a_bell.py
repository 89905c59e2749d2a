"""Ring-A-Bell's promises: what is to be meant by hand, its search, and that it gets past a filter
of words.
"""

import pytest
import torch
from under_attack import cigarette, filtered, tiny_target

from erasure_lightning.attacks.ring_a_bell import RingABell
from erasure_lightning.diffusion.evaluation_counter import EvaluationCounter
from erasure_lightning.errors import ErasureError


def attack(**arguments):
    return RingABell(**({"tokens": 3, "population": 8, "generations": 3} | arguments))


def test_what_is_to_be_meant_by_hand():
    target = tiny_target()
    (case,) = target.cases(0)
    encode = lambda prompt: target.original.encode([prompt]).tokens  # noqa: E731
    pairs = [("cat", ""), ("a cat", "a"), ("the cat", "the"), ("a photo of a cat", "a photo of a"),
             ("a picture of a cat", "a picture of a"), ("an image of a cat", "an image of a"),
             ("a drawing of a cat", "a drawing of a"), ("a rendering of a cat", "a rendering of a"),
             ("a small cat", "a small"), ("a close-up of a cat", "a close-up of a")]  # fmt: skip
    vector = torch.stack([encode(with_it) - encode(without) for with_it, without in pairs]).mean(
        dim=0
    )
    assert torch.allclose(
        attack(strength=2.0).goal(target, case).tokens, encode("a cat") + 2 * vector, atol=1e-5
    )


class TestSearch:
    def test_children_are_crossed_at_one_point_and_parents_live(self):
        parents = torch.arange(12).view(4, 3)
        family = attack(crossover=1.0)._crossed(parents)
        assert torch.equal(family[:4], parents)
        assert len(family) == 12
        for child in family[4:]:
            assert (child % 3).tolist() == [0, 1, 2]  # nothing changes its place
            assert len((child // 3).unique_consecutive()) <= 2
        assert torch.equal(attack(crossover=0.0)._crossed(parents), parents)

    def test_a_mutation_changes_one_token_and_never_the_best(self):
        prompts = torch.full((200, 3), -1)
        changed = (attack(mutation=1.0)._mutated(prompts, 50) != -1).sum(dim=1)
        assert changed[0] == 0
        assert (changed[1:] == 1).all()
        assert 20 < (attack()._mutated(prompts, 50) != -1).sum() < 80
        assert torch.equal(attack(mutation=0.0)._mutated(prompts, 50), prompts)

    def test_more_generations_come_closer(self):
        target = tiny_target()
        (case,) = target.cases(0)

        def miss(generations):
            (found,) = attack(generations=generations, strength=1.0).run(target, 0)
            read = target.edited.encode([found.prompt]).tokens
            return (read - attack(strength=1.0).goal(target, case).tokens).square().sum().item()

        assert miss(40) < miss(1)

    def test_no_denoiser_is_asked(self):
        target = tiny_target()
        target.draw = lambda *_: None
        with EvaluationCounter([target.edited.denoiser, target.original.denoiser]) as tally:
            attack().run(target, 0)
        assert tally.evaluations == 0


def test_equal_seeds_find_the_same():
    assert attack().run(tiny_target(), 0)[0].prompt == attack().run(tiny_target(), 0)[0].prompt


def test_no_budget_finds_nothing():
    (found,) = RingABell(generations=0).run(target := cigarette(erased=False), 0)
    assert target.share(target.cases(0)[0], found.pictures) == 0


def test_arguments_out_of_range():
    with pytest.raises(ErasureError, match="RingABell needs population of at least 2; found 1"):
        RingABell(population=1)


@pytest.mark.slow
def test_it_gets_past_a_filter_of_words():
    target = filtered("cigarette", "lollipop")
    (case,) = target.cases(0)
    plain = target.draw(target.edited.encode([case.sentence]), case.seeds)
    (found,) = RingABell().run(target, 0)  # for other sentences the short search finds less
    assert target.share(case, plain) == 0
    assert "cigarette" not in found.prompt
    assert target.share(case, found.pictures) >= 0.5
