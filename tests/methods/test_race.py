"""RACE: the contract, its two losses, and its attack."""

import pytest
import torch
from noisy import noisy
from shipped import numbers

from erasure_lightning.backbones.tiny import TinyBackbone
from erasure_lightning.concepts.concept import Concept, PromptBatch
from erasure_lightning.errors import ErasureError
from erasure_lightning.methods.esd import ESD
from erasure_lightning.methods.race import RACE
from erasure_lightning.testing import check_method
from erasure_lightning.training.adversary_kinds import WordAdversary

CONCEPTS = [Concept("cat", "dog"), Concept("star", "heart")]
BATCH = PromptBatch(["a photo of a {}", "the {} in a house"], ["cat", "star"], ["", ""], [0, 1])
X, T = torch.linspace(-2, 2, 512).view(2, 4, 8, 8), torch.tensor([100.0, 900.0])

#: What the shipped config gives.
ARGUMENTS = numbers("race")


def method(cls=RACE, **arguments):
    """A method whose denoiser has moved, so that student and original differ."""
    module = cls(concepts=CONCEPTS, backbone=TinyBackbone(), **arguments)
    module.configure_model()
    torch.manual_seed(3)
    for parameter in module.editable().values():
        parameter.data.add_(0.2 * torch.randn_like(parameter))
    torch.manual_seed(0)
    return module


def test_contract():
    check_method(RACE, **(ARGUMENTS | {"attack_from": 1, "attack_steps": 2}))


def test_before_its_attacks_it_is_esd():
    ours, esds = method(attack_from=1, eta=0.7), method(ESD, eta=0.7)
    losses = [each.erasure_loss(noisy(each, X, T, BATCH)) for each in (ours, esds)]
    assert torch.equal(*losses)


def test_its_loss_is_at_the_attacked_states():
    module = method(attack_from=0, radius=0.3)
    states = module.backbone.encode(BATCH.prompts)
    change = 0.3 * torch.ones_like(states.tokens)
    module.adversary.search = lambda *_: [change]
    low, high = (each.view(2, 1, 1) for each in states.tokens.flatten(1).aminmax(dim=1))
    attacked = states.with_tokens((states.tokens + change).clamp(low, high))
    batch = noisy(module, X, T, BATCH)
    target = 2 * batch.teacher.unconditional - batch.teacher.concept
    by_hand = (module.backbone.denoise(X, T, attacked) - target).square().mean()
    assert torch.allclose(module.erasure_loss(batch), by_hand)
    plain = (module.backbone.denoise(X, T, states) - target).square().mean()
    assert not torch.allclose(by_hand, plain, rtol=1e-3)  # the control


def test_its_numbers_are_those_of_its_search():
    states = method(attack_from=7, attack_steps=5, radius=0.4).adversary
    assert (states.begin, states.steps, states.radius, states.lr) == (7, 5, 0.4, 0.1)


def test_another_search_takes_the_place_of_its_own():
    words = WordAdversary()
    assert method(adversary=words).adversary is words


def test_numbers_out_of_range_are_refused():
    with pytest.raises(ErasureError, match="RACE needs radius above 0"):
        method(radius=0.0)
