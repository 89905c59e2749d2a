import pytest
import torch
from torch.optim import Optimizer
from under_attack import CAT, tiny_target

from erasure_lightning.attacks.base import Attack, AttackResult, ConceptAttack, descend
from erasure_lightning.attacks.concept_inversion import ConceptInversion
from erasure_lightning.attacks.p4d import P4D
from erasure_lightning.attacks.relearning_curve import RelearningCurve
from erasure_lightning.attacks.soft_embedding import SoftEmbedding
from erasure_lightning.attacks.unlearn_diff_atk import UnlearnDiffAtk
from erasure_lightning.concepts.concept import Concept


class Guess(ConceptAttack):
    """Random conditioning of the denoiser."""

    def __init__(self, *, scale: float = 1.0, **kwargs):
        super().__init__(**kwargs)
        self.scale = scale

    def find(self, target, case):
        states = self.scale * torch.randn_like(target.edited.encode([case.prompt]).tokens)
        return AttackResult(torch.zeros(2, 3, 16, 16), tensors={"states": states})


def states(attack, seed, concepts=CAT):
    return [result.tensors["states"] for result in attack.run(tiny_target(concepts), seed)]


def test_equal_seeds_give_equal_results_and_others_do_not():
    assert torch.equal(*(states(Guess(), 0)[0] for _ in range(2)))
    assert not torch.equal(states(Guess(), 0)[0], states(Guess(), 1)[0])
    assert not torch.equal(states(Guess(), 0)[0], states(Guess(seed=1), 0)[0])


def test_the_global_generator_is_restored():
    before = torch.random.get_rng_state()
    Guess().run(target := tiny_target(), 0)
    torch.random.set_rng_state(before)
    Guess().run(target, 0)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_concept_is_attacked_independently_of_the_others():
    alone, beside = states(Guess(), 0), states(Guess(), 0, [Concept("star"), *CAT])
    assert torch.equal(alone[0], beside[1])
    assert not torch.equal(beside[0], beside[1])


def test_arguments_include_those_of_the_base():
    assert Guess(scale=2.0, seed=3).arguments() == {"scale": 2.0, "seed": 3}


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        (ConceptInversion, {"steps": 0, "examples": 1, "weight_decay": 0.045}),
        (P4D, {"steps": 0, "tokens": 1, "weight_decay": 0.045}),
        (SoftEmbedding, {"steps": 0, "examples": 1}),
        (UnlearnDiffAtk, {"steps": 0, "tokens": 1, "times": 1, "weight_decay": 0.045}),
        (RelearningCurve, {"steps": 0, "examples": [1]}),
    ],
)
def test_an_attack_s_optimizer_has_its_numbers(kind, arguments, monkeypatch):
    built = []
    constructor = Optimizer.__init__

    def recorded(self, parameters, defaults):
        built.append(defaults)
        constructor(self, parameters, defaults)

    target = tiny_target()
    monkeypatch.setattr(Optimizer, "__init__", recorded)
    kind(lr=0.123, **arguments).run(target, 0)
    assert {defaults["lr"] for defaults in built} == {0.123}
    if "weight_decay" in arguments:
        assert {defaults["weight_decay"] for defaults in built} == {0.045}


def test_a_step_changes_the_optimised_parameters_alone():
    ours, theirs = (torch.ones(2, requires_grad=True) for _ in range(2))
    descend(torch.optim.SGD([ours], lr=1.0), (ours * theirs).sum())
    assert torch.equal(ours, torch.zeros(2))
    assert theirs.grad is None


def test_an_attack_must_implement_its_search():
    with pytest.raises(TypeError, match="abstract"):
        Attack()
