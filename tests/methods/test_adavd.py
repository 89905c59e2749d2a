"""AdaVD: the contract, its equation by hand, the span of several concepts, and what it erases."""

import pytest
import torch
from recognition import KEPT, recognised, recognised_before
from shipped import numbers
from torch import nn
from torch.nn.functional import cosine_similarity, normalize

from erasure_lightning.adapters.value_decomposition import ValueDecomposition, dual_basis
from erasure_lightning.backbones.conditioning import CONCEPT, START
from erasure_lightning.backbones.tiny import TinyBackbone, TinyPixArt
from erasure_lightning.concepts.concept import Concept, fill_template
from erasure_lightning.methods.adavd import AdaVD
from erasure_lightning.testing import check_method, quick_fit


def test_contract():
    check_method(AdaVD)


def rule(values, **settings):
    """A rule with values, whose steepness of 0 makes every share the whole projection."""
    settings = {"first": 1, "steepness": 0.0, "threshold": 0.4, "scale": 2.0} | settings
    adapter = ValueDecomposition(nn.Linear(3, values.shape[1]), concepts=len(values), **settings)
    adapter.values.copy_(values)
    adapter.duals.copy_(dual_basis(values))
    return adapter


def test_one_concept_by_hand():
    torch.manual_seed(0)
    concept, output = torch.randn(1, 6), torch.randn(2, 5, 6)
    changed = rule(concept, steepness=5.0, scale=1.5)(torch.empty(0), output)
    c = concept[0]
    for row, token in ((0, 1), (1, 4)):
        v = output[row, token]
        delta = 1.5 / (1 + torch.exp(-5.0 * (cosine_similarity(c, v, dim=0) - 0.4)))
        expected = v - delta * (c @ v) / (c @ c) * c
        assert torch.allclose(changed[row, token], expected, atol=1e-6)
    assert torch.equal(changed[:, 0], output[:, 0])  # the start token


def test_of_several_concepts_nothing_is_left_in_their_span():
    torch.manual_seed(0)
    concepts, output = torch.randn(3, 6), torch.randn(2, 5, 6)
    changed = rule(concepts)(torch.empty(0), output)[:, 1:]
    assert (changed @ concepts.mT).abs().max() < 1e-5
    one_by_one = output[:, 1:]  # the control: each for itself leaves parts of the others
    for c in normalize(concepts, dim=1):
        one_by_one = one_by_one - (one_by_one @ c).unsqueeze(2) * c
    assert (one_by_one @ concepts.mT).abs().max() > 1e-2


@pytest.mark.parametrize("family", [TinyBackbone, TinyPixArt])
def test_the_values_are_those_of_the_concepts_last_word(family):
    """T5 has no start token that would be passed over."""
    module = AdaVD(concepts=[Concept("small cat"), Concept("star")], backbone=family())
    quick_fit(module, 1)
    states = module.original.encode([fill_template("{}", c.name) for c in module.concepts])
    starts = states.roles[0, 0] == START
    source = module.original.text_inputs()[0]
    for name, layer in module.original.value_layers().items():
        adapter = module.backbone.get_submodule(name).adapter
        last = [int(row.nonzero()[-1]) for row in states.positions(CONCEPT)]
        expected = layer(source.rows(states))[torch.arange(2), last]
        assert torch.allclose(adapter.values, expected, atol=1e-5)
        assert adapter.first == int(starts)


def test_its_numbers_are_those_of_the_rule():
    numbers = {"steepness": 3.0, "threshold": 0.2, "scale": 0.5}
    module = AdaVD(concepts=[Concept("cat")], backbone=TinyBackbone(), **numbers)
    module.configure_model()
    for name in module.original.value_layers():
        adapter = module.backbone.get_submodule(name).adapter
        assert {key: getattr(adapter, key) for key in numbers} == numbers


@pytest.mark.slow
def test_it_erases_the_cigarette_of_the_emoji_world_and_leaves_the_rest():
    cigarette = [Concept("cigarette", "lollipop")]
    module = quick_fit(
        AdaVD(backbone="emoji-world", concepts=cigarette, **numbers("adavd")), steps=1
    )
    assert recognised_before(module, ["cigarette"] * 4) == 1
    assert recognised(module.backbone, ["cigarette"] * 4) == 0
    assert recognised(module.backbone, KEPT) == recognised_before(module, KEPT) == 1
