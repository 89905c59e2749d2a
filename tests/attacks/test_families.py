"""Every attack on a tiny model of every family, which it must not modify."""

import pytest
import torch
from under_attack import tiny_target, weights

from erasure_lightning.attacks import ATTACKS
from erasure_lightning.backbones.tiny import TINY_BACKBONES
from erasure_lightning.registry import ATTACK, find_offer, load_offer

#: The smallest budgets that run all of an attack's code.
BUDGETS = {
    "UnlearnDiffAtk": {"tokens": 1, "times": 1, "steps": 1},
    "P4D": {"tokens": 1, "steps": 2, "every": 1, "examples": 1},
    "RingABell": {"tokens": 1, "population": 4, "generations": 2},
    "ConceptInversion": {"steps": 2, "examples": 1},
    "SoftEmbedding": {"steps": 2, "examples": 1},
    "LatentInversion": {"steps": 2, "refinements": 1},
    "BenignFineTune": {"steps": 1, "points": 1, "examples": 2, "batch_size": 2},
    "RelearningCurve": {"steps": 1, "examples": [0, 1], "batch_size": 1},
    "Inpainting": {},
    "Completion": {"share": 0.5},
    "TrajectoryNoise": {"etas": [1.5], "scales": [1.0]},
    "ClassifierGuidance": {"scales": [1.0], "examples": 2, "others": 2, "epochs": 1},
    "Misspelling": {"variants": 1},
    "Translation": {"words_of": {"cat": ["Katze"]}},
}


def test_every_attack_has_a_budget_here():
    assert BUDGETS.keys() == ATTACKS.keys()


@pytest.mark.parametrize("name", BUDGETS)
@pytest.mark.parametrize("family", TINY_BACKBONES, ids=lambda family: family.__name__)
def test_it_runs(name, family):
    target = tiny_target(family=family)
    before = weights(target.edited)
    attack = load_offer(find_offer(ATTACK, name))(**BUDGETS[name])
    (result,) = attack.run(target, 0)
    assert len(result.images) == 2
    assert result.images.isfinite().all()
    after = weights(target.edited)
    assert all(torch.equal(after[key], value) for key, value in before.items())


@pytest.mark.parametrize("name", BUDGETS)
def test_it_runs_on_weights_in_bfloat16(name):
    target = tiny_target(base_dtype="bfloat16")
    assert target.edited.base_dtype == target.original.base_dtype == torch.bfloat16
    attack = load_offer(find_offer(ATTACK, name))(**BUDGETS[name])
    (result,) = attack.run(target, 0)
    assert len(result.images) == 2
    assert result.images.isfinite().all()


def test_soft_embedding_optimises_the_pooled_vector_too():
    target = tiny_target(family=TINY_BACKBONES[1])
    attack = load_offer(find_offer(ATTACK, "SoftEmbedding"))(steps=2, lr=0.1, examples=1)
    (result,) = attack.run(target, 0)
    plain = target.edited.encode(["a cat"])
    assert result.tensors.keys() == {"tokens", "pooled"}
    assert not torch.allclose(result.tensors["pooled"], plain.pooled)
