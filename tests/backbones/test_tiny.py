"""Tiny models are built once and copied: copies are equal and independent."""

import pytest
import torch
from torch import nn

from erasure_lightning.backbones.structural_copy import copier
from erasure_lightning.backbones.tiny import TINY_BACKBONES, TinyBackbone, TinyFlux


def places(model):
    return {value.data_ptr() for value in model.state_dict().values()}


@pytest.mark.parametrize("family", TINY_BACKBONES)
def test_models_of_equal_arguments_are_equal_and_share_no_tensor(family):
    first = family()
    expected = first.fingerprint()
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.add_(1.0)
    second, third, other = family(), family(), family(seed=1)
    assert second.fingerprint() == third.fingerprint() == expected
    assert other.fingerprint() != expected != first.fingerprint()
    assert not places(second) & places(third)
    assert all(a is not b for a, b in zip(second.towers, third.towers, strict=True))
    tokenizers = [[tower.tokenizer for tower in model.towers] for model in (second, third)]
    assert all(a is not b for a, b in zip(*tokenizers, strict=True))
    assert second.spell(second.words()) == first.spell(first.words())
    assert torch.equal(second.encode(["a cat"]).tokens, third.encode(["a cat"]).tokens)
    assert not any(parameter.requires_grad for parameter in third.parameters())


def test_random_numbers_are_those_of_before():
    state = torch.get_rng_state()
    TinyBackbone(seed=2), TinyBackbone(seed=2)
    assert torch.equal(torch.get_rng_state(), state)


def test_models_of_another_precision_are_not_those_that_are_copied():
    torch.set_default_dtype(torch.float64)
    try:
        double = TinyFlux(seed=3)
    finally:
        torch.set_default_dtype(torch.float32)
    plain, again = TinyFlux(seed=3), TinyFlux(seed=3)
    assert [model.base_dtype for model in (double, plain, again)] == [
        torch.float64,
        *[torch.float32] * 2,
    ]
    assert plain.fingerprint() == again.fingerprint() != TinyFlux().fingerprint()


def test_a_copy_has_the_ties_of_the_original_and_what_is_shared():
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    second.weight = first.weight
    first.bias.requires_grad_(False)
    name = ["shared"]
    copied = copier({"modules": [first, second], "name": name, "function": places}, [name])()
    one, other = copied["modules"]
    assert one.weight is other.weight is not first.weight
    assert torch.equal(one.weight, first.weight)
    assert (one.weight.requires_grad, one.bias.requires_grad) == (True, False)
    assert copied["name"] is name
    assert copied["function"] is places
