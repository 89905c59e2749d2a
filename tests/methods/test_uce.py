"""UCE: the minimiser, solved map by map; which token; and the erasure itself, with
controls.
"""

from types import SimpleNamespace

import pytest
import torch
from contracts import VARIANT
from recognition import KEPT, recognised, recognised_before

from erasure_lightning.backbones.tiny import TinyBackbone
from erasure_lightning.concepts.concept import Concept
from erasure_lightning.errors import ErasureError
from erasure_lightning.methods.uce import UCE
from erasure_lightning.retention.local_noise import LocalNoisePreservation
from erasure_lightning.testing import check_method, edit_of, quick_fit

CONCEPTS = [Concept("small cat", "dog"), Concept("star", "red heart"), Concept("boat")]


def uce(concepts=CONCEPTS, **arguments):
    module = UCE(concepts=concepts, backbone=TinyBackbone(), **arguments)
    module.configure_model()
    return module


def last(module, prompt):
    """The row in front of the end-of-text token, as the official code takes it, ``(1, D)`` in
    float64.
    """
    (embedded,) = module.original.embed([prompt])
    return module.original.encode([prompt]).tokens[0, embedded.ends - 1].double()


def by_hand(module, pairs, preserved, e, p, lamb, gram=None):
    """The official solution, one map after the other."""
    solution = {}
    for name, layer in module.original.text_layers().items():
        old = layer.weight.double()
        keys = lamb * torch.eye(old.shape[1], dtype=torch.float64) + (0 if gram is None else gram)
        values = old @ keys
        for concept, anchor in pairs:
            c, g = last(module, concept), last(module, anchor)
            values, keys = values + e * (old @ g.mT) @ c, keys + e * c.mT @ c
        for prompt in preserved:
            k = last(module, prompt)
            values, keys = values + p * (old @ k.mT) @ k, keys + p * k.mT @ k
        solution[f"{name}.weight"] = values @ torch.linalg.inv(keys)
    return solution


def same(solution, expected):
    assert solution.keys() == expected.keys()
    return all(
        torch.allclose(solution[name].double(), expected[name], atol=1e-6, rtol=0)
        for name in expected
    )


@pytest.mark.parametrize(
    "arguments", [{}, {"templates": ["a {}", "{} in a house"], "preserve": ["tree", ""]}], ids=str
)
def test_contract(arguments):
    check_method(UCE, **(VARIANT if arguments else {}), **arguments)


class TestSolution:
    def test_is_that_of_every_map_alone(self):
        module = uce(preserve=["tree", "a car"], erase_scale=2.0, preserve_scale=0.7)
        pairs = [("small cat", "dog"), ("star", "red heart"), ("boat", "")]
        expected = by_hand(module, pairs, ["tree", "a car"], 2.0, 0.7, 0.5)
        assert same(module.solve(), expected)
        assert not same(edit_of(module), expected)

    def test_templates_have_retained_things_as_those_of_the_data(self):
        module = uce(templates=["a {thing}, {} style", "{thing} in {} style"])
        first, second = module.prompts.with_things(["{thing}", "{thing}"])
        assert first != second
        filled = uce(templates=[f"a {first}, {{}} style", f"{second} in {{}} style"])
        assert same(module.solve(), {n: v.double() for n, v in filled.solve().items()})

    def test_in_templates_the_empty_anchor_is_the_word_before(self):
        module = uce(templates=["{}", "photo of {}"])
        pairs = [(t + c, (t + a).strip()) for t in ("", "photo of ") for c, a in
                 (("small cat", "dog"), ("star", "red heart"), ("boat", ""))]  # fmt: skip
        assert same(module.solve(), by_hand(module, pairs, [], 1.0, 1.0, 0.5))

    def test_holds_what_callbacks_ask_for(self):
        module, gram = uce(), torch.randn(32, 32, dtype=torch.float64)
        gram = gram @ gram.mT
        held = SimpleNamespace(weight=1.0, of_states=False, gram=lambda module, source: gram)
        module.retention.append(held)
        pairs = [("small cat", "dog"), ("star", "red heart"), ("boat", "")]
        assert same(module.solve(), by_hand(module, pairs, [], 1.0, 1.0, 0.5, gram))
        assert not same(module.solve(), by_hand(module, pairs, [], 1.0, 1.0, 0.5))

    def test_is_the_minimiser(self):
        module = uce(preserve=["tree"])
        solution = module.solve()
        for name, layer in module.original.text_layers().items():
            old, new = (
                layer.weight.double(),
                solution[f"{name}.weight"].double().requires_grad_(True),
            )

            def objective(w, old=old):
                pairs = [
                    ("small cat", "dog"),
                    ("star", "red heart"),
                    ("boat", ""),
                    ("tree", "tree"),
                ]
                gaps = [
                    (last(module, c) @ w.mT - last(module, a) @ old.mT).square().sum()
                    for c, a in pairs
                ]
                return torch.stack(gaps).sum() + 0.5 * (w - old).square().sum()

            (gradient,) = torch.autograd.grad(objective(new), new)
            (before,) = torch.autograd.grad(
                objective(start := old.clone().requires_grad_(True)), start
            )
            assert gradient.abs().max() < 1e-5 * before.abs().max()

    def test_the_order_of_concepts_does_not_matter(self):
        assert same(uce().solve(), {n: w.double() for n, w in uce(CONCEPTS[::-1]).solve().items()})

    def test_nothing_to_erase_leaves_every_bit(self):
        module = uce(erase_scale=0.0, preserve=["tree"])
        assert all(
            torch.equal(new, old)
            for new, old in zip(module.solve().values(), edit_of(module).values(), strict=True)
        )


def test_the_concept_comes_out_as_its_anchor_did_and_what_is_preserved_as_before():
    module = quick_fit(uce(preserve=["tree"], ridge=1e-3), 1)
    for name, layer in module.backbone.text_layers().items():
        old = module.original.get_submodule(name).weight.double()
        new = layer.weight.double()
        predict = lambda w, prompt: last(module, prompt) @ w.mT  # noqa: E731
        assert torch.allclose(predict(new, "small cat"), predict(old, "dog"), atol=1e-3)
        assert torch.allclose(
            predict(new, "boat"),
            module.original.encode([""]).tokens[0, :1].double() @ old.mT,
            atol=1e-3,
        )
        assert torch.allclose(predict(new, "tree"), predict(old, "tree"), atol=1e-3)
        assert not torch.allclose(predict(old, "small cat"), predict(old, "dog"), atol=1e-2)


def test_a_hundred_concepts():
    concepts = [Concept(f"cat {i}", "dog") for i in range(100)]
    assert all(w.isfinite().all() for w in uce(concepts).solve().values())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"ridge": 0.0}, "UCE needs ridge above 0; found 0.0"),
        ({"erase_scale": -1.0}, "UCE needs erase_scale of at least 0; found -1.0"),
        ({"templates": ["{}", "a photo"]}, "found 'a photo'"),
        ({"templates": ["{} {}"]}, "found '{} {}'"),
    ],
)
def test_arguments_out_of_range(arguments, words):
    with pytest.raises(ErasureError, match=words):
        uce(**arguments)


@pytest.mark.slow
def test_it_erases_the_cigarette_of_the_emoji_world_and_keeps_the_rest():
    module = UCE(
        backbone="emoji-world",
        concepts=[Concept("cigarette", "lollipop")],
        templates=["{}", "a {}"],
    )
    quick_fit(module, 1, LocalNoisePreservation(weight=0.01))
    assert recognised_before(module, ["cigarette"] * 4) == 1
    assert recognised(module.backbone, ["cigarette"] * 4) == 0
    assert recognised(module.backbone, KEPT) == recognised_before(module, KEPT) == 1
