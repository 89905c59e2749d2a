"""RECE: its first edit and its epochs map by map, and what brings a concept back, before
and after.
"""

from types import SimpleNamespace

import pytest
import torch
from contracts import VARIANT
from recognition import KEPT, recognised, recognised_before

from erasure_lightning.backbones.tiny import TinyBackbone
from erasure_lightning.concepts.concept import Concept
from erasure_lightning.concepts.prompt_lists import read_prompt_list
from erasure_lightning.errors import ErasureError
from erasure_lightning.methods.rece import RECE, adversarial_states, sum_of_grams
from erasure_lightning.retention.local_noise import LocalNoisePreservation
from erasure_lightning.testing import check_method, edit_of, quick_fit

PAIRS = [("small cat", "dog"), ("star", "")]
REG = 1e-3


def rece(**arguments):
    module = RECE(concepts=[Concept(*pair) for pair in PAIRS], backbone=TinyBackbone(), **arguments)
    module.configure_model()
    return module


def tokens(module):
    """The layers that read tokens."""
    return module.original.text_inputs()[0]


def states(module, prompt):
    """All rows of a prompt, ``(L, D)`` in float64."""
    return module.original.encode([prompt]).tokens[0].double()


def tail(module, prompt):
    """Its rows from the last token of its words on; from the start token for the empty prompt."""
    (embedded,) = module.original.embed([prompt])
    return states(module, prompt)[int(embedded.ends) - 1 :]


def old_maps(module):
    return [layer.weight.double() for layer in module.original.text_layers().values()]


def solved(w, pairs, preserved, p, lamb):
    """The official edit of one map: all targets from the map as it stands."""
    values, keys = lamb * w, lamb * torch.eye(w.shape[1], dtype=w.dtype)
    for sources, images in pairs:
        values, keys = values + (w @ images.mT) @ sources, keys + sources.mT @ sources
    values, keys = values + p * (w @ preserved.mT) @ preserved, keys + p * preserved.mT @ preserved
    return values @ torch.linalg.inv(keys)


def first_by_hand(module, prompts=("",), p=1.0):
    pairs = []
    for concept, anchor in PAIRS:
        c, a = tail(module, concept), tail(module, anchor)
        common = min(len(c), len(a))
        pairs.append((c[:common], a[:common]))
    preserved = torch.cat([states(module, prompt) for prompt in prompts])
    return [solved(w, pairs, preserved, p, 0.5) for w in old_maps(module)]


def adversarial_by_hand(module, maps, c):
    gram = sum(w.mT @ w for w in maps) + module.regularization * torch.eye(c.shape[1])
    cross = sum(w.mT @ old for w, old in zip(maps, old_maps(module), strict=True))
    return c @ (torch.linalg.inv(gram) @ cross).mT


def epoch_by_hand(module, maps):
    pairs = [
        (adversarial_by_hand(module, maps, states(module, c)), states(module, a)) for c, a in PAIRS
    ]
    p, lamb = module.preserve_scale, module.ridge
    return [solved(w, pairs, states(module, ""), p, lamb) for w in maps]


def close(solution, expected):
    return all(
        torch.allclose(s.double(), w, atol=1e-5, rtol=1e-4)
        for s, w in zip(solution, expected, strict=True)
    )


@pytest.mark.parametrize(
    "arguments", [{}, {"epochs": 3, "regularization": 0.1}, {"epochs": 0, "preserve": []}], ids=str
)
def test_contract(arguments):
    check_method(RECE, **(VARIANT if arguments else {}), **arguments)


class TestSolution:
    def test_without_epochs_is_the_first_edit_of_every_map_alone(self):
        module = rece(epochs=0)
        assert close(module.solve().values(), first_by_hand(module))
        assert not close(edit_of(module).values(), first_by_hand(module))

    @pytest.mark.parametrize(("count", "p"), [(4, 0.25), (11, 0.1)])
    def test_preserved_prompts_share_a_weight_in_the_first_edit_of_at_least_a_tenth(self, count, p):
        prompts = ["", *[f"a photo of {number} dogs" for number in range(1, count)]]
        module = rece(epochs=0, preserve=prompts)
        assert close(module.solve().values(), first_by_hand(module, prompts, p))
        assert not close(module.solve().values(), first_by_hand(module, prompts))  # the control

    @pytest.mark.parametrize(
        ("epochs", "numbers"),
        [
            (1, {}),
            (2, {}),
            (1, {"regularization": 0.1, "preserve_scale": 0.5, "ridge": 0.7}),
        ],
    )
    def test_epochs_edit_the_maps_as_they_stand(self, epochs, numbers):
        module = rece(epochs=epochs, **numbers)
        expected = {"regularization": REG, "preserve_scale": 0.1, "ridge": 0.1} | numbers
        assert expected == {name: getattr(module, name) for name in expected}
        maps = first_by_hand(module)
        for _ in range(epochs):
            maps = epoch_by_hand(module, maps)
        assert close(module.solve().values(), maps)

    @pytest.mark.parametrize("epochs", [0, 1])
    def test_what_callbacks_retain_has_its_place_in_every_edit(self, epochs):
        """With a weight without bound no edit changes a weight."""
        module = rece(epochs=epochs)
        gram = 1e9 * torch.eye(32, dtype=torch.float64)
        held = SimpleNamespace(weight=1.0, of_states=False, gram=lambda module, source: gram)
        assert not close(module.solve().values(), old_maps(module))  # the control
        module.retention.append(held)
        assert close(module.solve().values(), old_maps(module))

    def test_the_order_of_concepts_does_not_matter(self):
        turned = RECE(concepts=[Concept(*pair) for pair in PAIRS[::-1]], backbone=TinyBackbone())
        turned.configure_model()
        assert close(rece().solve().values(), [w.double() for w in turned.solve().values()])


class TestAdversarialEmbedding:
    def test_of_the_original_maps_is_the_concept_itself(self):
        module = rece()
        gram, c = sum_of_grams(old_maps(module)), states(module, "star")
        adversarial = adversarial_states(c, torch.eye(32, dtype=torch.float64), gram, 1e-9)
        assert torch.allclose(adversarial, c, atol=1e-5)

    def test_is_the_minimiser(self):
        module = rece()
        edit, gram, c = (
            module.first_edit(tokens(module)).detach(),
            sum_of_grams(old_maps(module)).detach(),
            states(module, "star"),
        )
        adversarial = adversarial_states(c, edit, gram, REG).detach().requires_grad_(True)
        errors = [(adversarial @ (w @ edit).mT - c @ w.mT).square().sum() for w in old_maps(module)]
        (gradient,) = torch.autograd.grad(
            torch.stack(errors).sum() + REG * adversarial.square().sum(), adversarial
        )
        assert gradient.abs().max() < 1e-8

    @torch.no_grad()
    def test_brings_the_concept_back_past_the_first_edit_and_not_past_an_epoch(self):
        module = rece()
        gram, first, c = (
            sum_of_grams(old_maps(module)),
            module.first_edit(tokens(module)),
            states(module, "small cat"),
        )
        adversarial = adversarial_states(c, first, gram, REG)
        after = module.epoch(first, gram, tokens(module))

        def missing(edit, rows):
            """How far the maps are from the originals' images of the concept, relative to these."""
            gaps = [(rows @ (w @ edit).mT - c @ w.mT).square().sum() for w in old_maps(module)]
            return (
                torch.stack(gaps).sum() / sum((c @ w.mT).square().sum() for w in old_maps(module))
            ).item()

        assert missing(first, c) > 0.15  # the control: the plain concept really was erased
        assert missing(first, adversarial) < 0.1 * missing(first, c)
        assert missing(after, adversarial) > missing(first, c)


def test_a_list_is_preserved_with_the_empty_prompt_and_without_the_concepts():
    module = RECE(
        concepts=[Concept("Giotto", kind="style")],
        backbone=TinyBackbone(),
        preserve="artists",
    )
    artists = read_prompt_list("artists", "test")
    assert "Giotto" in artists
    assert module.preserve == ["", *[artist for artist in artists if artist != "Giotto"]]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"epochs": -1}, "RECE needs epochs of at least 0; found -1"),
        ({"regularization": 0.0}, "RECE needs regularization above 0; found 0.0"),
    ],
)
def test_arguments_out_of_range(arguments, words):
    with pytest.raises(ErasureError, match=words):
        rece(**arguments)


@pytest.mark.slow
def test_it_erases_the_cigarette_of_the_emoji_world_and_keeps_the_rest():
    module = RECE(backbone="emoji-world", concepts=[Concept("cigarette", "lollipop")])
    quick_fit(module, 1, LocalNoisePreservation(weight=0.3))
    assert recognised_before(module, ["cigarette"] * 4) == 1
    assert recognised(module.backbone, ["cigarette"] * 4) == 0
    assert recognised(module.backbone, KEPT) == recognised_before(module, KEPT) == 1
