"""ESD: the contract, its loss by hand in both forms, the two etas, whose latents, and
the erasure itself.
"""

import pytest
import torch
from contracts import VARIANT
from noisy import noisy
from recognition import KEPT, recognised, recognised_before
from shipped import numbers

from erasure_lightning.backbones.tiny import TinyBackbone
from erasure_lightning.concepts.concept import Concept, PromptBatch
from erasure_lightning.errors import ErasureError
from erasure_lightning.methods.esd import ESD
from erasure_lightning.testing import check_method, quick_fit
from erasure_lightning.training.latent_sources import PureNoise
from erasure_lightning.training.trajectory_bank import TrajectoryBank

CONCEPTS = [Concept("cat", "dog"), Concept("star", "heart")]
BATCH = PromptBatch(
    ["a photo of a {}", "the {} in a house"], ["cat", "star"], ["dog", "heart"], [0, 1]
)
X, T = torch.linspace(-2, 2, 512).view(2, 4, 8, 8), torch.tensor([100.0, 900.0])
PARTS = ("x", "x-strict", "u", "all")

#: What the shipped config gives.
ARGUMENTS = numbers("esd")


def esd(concepts=CONCEPTS, **arguments):
    module = ESD(concepts=concepts, backbone=TinyBackbone(), **(ARGUMENTS | arguments))
    module.configure_model()
    for parameter in module.editable().values():  # so that student and original differ
        parameter.data.add_(0.01)
    return module


def predict(model, words):
    prompts = [
        template.replace("{}", word) for template, word in zip(BATCH.templates, words, strict=True)
    ]
    return model.denoise(X, T, model.encode(prompts if any(words) else ["", ""]))


@pytest.mark.parametrize("part", PARTS)
def test_contract(part):
    check_method(
        ESD,
        train=part,
        **({} if part == "x" else VARIANT),
        latents=TrajectoryBank(2, 3),
        **ARGUMENTS,
    )


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"latents": TrajectoryBank(trajectories=2, steps=3, student=True, refresh=2)},
        {"latents": TrajectoryBank(trajectories=3, steps=3), "erase_from": "anchor"},
    ],
    ids=["pure noise", "student", "anchor"],
)
def test_contract_on_other_latents(arguments):
    check_method(ESD, **VARIANT, **(ARGUMENTS | arguments))


class TestLoss:
    @pytest.mark.parametrize("eta", [0.0, 1.0, 2.5])
    def test_the_papers_form(self, eta):
        module = esd(eta=eta)
        prediction, unconditional = (
            predict(module.original, BATCH.concepts),
            predict(module.original, ["", ""]),
        )
        expected = unconditional - eta * (prediction - unconditional)
        by_hand = (predict(module.backbone, BATCH.concepts) - expected).square().mean()
        assert torch.allclose(module.erasure_loss(noisy(module, X, T, BATCH)), by_hand)

    @pytest.mark.parametrize("erase_from", ["concept", "anchor"])
    def test_the_number_of_2025_is_ours_plus_one_in_both_of_its_forms(self, erase_from):
        module, negative_guidance = esd(eta=1.0, erase_from=erase_from), 2.0
        batch, edited = BATCH, BATCH.concepts
        if erase_from == "anchor":
            batch, edited = (
                PromptBatch(BATCH.templates, BATCH.anchors, BATCH.concepts, [0, 1]),
                BATCH.anchors,
            )
        called = predict(module.original, BATCH.concepts) - predict(module.original, ["", ""])
        expected = predict(module.original, edited) - negative_guidance * called
        by_hand = (predict(module.backbone, edited) - expected).square().mean()
        assert torch.allclose(module.erasure_loss(noisy(module, X, T, batch)), by_hand)

    def test_another_number_is_another_loss(self):
        one, two = (
            m.erasure_loss(noisy(m, X, T, BATCH)) for m in (esd(eta=eta) for eta in (1.0, 2.0))
        )
        assert not torch.allclose(one, two)


class TestLatents:
    @pytest.mark.parametrize(
        ("erase_from", "named"), [("concept", {"cat", "star"}), ("anchor", {"dog", "heart"})]
    )
    def test_they_lie_on_trajectories_of_what_is_edited(self, erase_from, named):
        bank = TrajectoryBank(trajectories=4, steps=2)
        quick_fit(esd(erase_from=erase_from, latents=bank), 1)
        assert set(bank.sentences.concepts) == named

    def test_on_a_bank_the_original_predicts_in_rollouts_alone(self, monkeypatch):
        """Pure noise, the control, needs it in every step."""
        module = esd(latents=TrajectoryBank(trajectories=2, steps=3))
        calls = []

        def denoise(*arguments):
            calls.append(len(arguments[0]))
            return type(module.original).denoise(module.original, *arguments)

        quick_fit(module, 1)
        monkeypatch.setattr(module.original, "denoise", denoise)
        quick_fit(module, 4)
        assert calls == [4] * 3, "two trajectories, with and without their prompts"
        module.latents = PureNoise()
        calls.clear()
        quick_fit(module, 4)
        assert len(calls) >= 4


def test_what_each_part_trains():
    trained = {part: set(esd(train=part).editable()) for part in PARTS}
    assert trained["x-strict"] < trained["x"] < trained["all"]
    assert trained["u"] == trained["all"] - trained["x"]
    assert not any("text_encoders" in name for name in trained["all"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"eta": -1.0}, "ESD needs eta of at least 0; found -1.0"),
        (
            {"erase_from": "anchor", "concepts": [Concept("cat")]},
            "needs an anchor a concept; 'cat' has none",
        ),
    ],
)
def test_arguments_out_of_range(arguments, words):
    with pytest.raises(ErasureError, match=words):
        esd(**arguments)


@pytest.mark.slow
def test_it_erases_the_cigarette_of_the_emoji_world_and_keeps_the_rest():
    arguments = numbers("esd", lr=4e-4, latents=TrajectoryBank(4, 10))
    module = quick_fit(
        ESD(backbone="emoji-world", concepts=[Concept("cigarette")], **arguments), 20
    )
    assert recognised_before(module, ["cigarette"] * 4) == 1
    assert recognised(module.backbone, ["cigarette"] * 4) == 0
    assert recognised(module.backbone, KEPT) == recognised_before(module, KEPT) == 1
