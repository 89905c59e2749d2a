"""SDD: the contract, its loss by hand, the average that is saved, and the erasure itself."""

import pytest
import torch
from contracts import VARIANT
from noisy import noisy
from recognition import KEPT, recognised, recognised_before
from shipped import numbers

from erasure_lightning.backbones.tiny import TinyBackbone
from erasure_lightning.concepts.concept import Concept, PromptBatch
from erasure_lightning.errors import ErasureError
from erasure_lightning.methods.sdd import SDD
from erasure_lightning.testing import check_method, edit_of, quick_fit
from erasure_lightning.training.edit_state import BACKBONE_PREFIX
from erasure_lightning.training.image_sources import GeneratedImages
from erasure_lightning.training.trajectory_bank import TrajectoryBank

BATCH = PromptBatch(
    ["a photo of a {}", "the {} in a house"], ["cat", "star"], ["dog", "heart"], [0, 1]
)
X, T = torch.linspace(-2, 2, 512).view(2, 4, 8, 8), torch.tensor([100.0, 900.0])

#: What the shipped config gives.
ARGUMENTS = numbers("sdd")


def sdd(**arguments):
    concepts = [Concept("cat"), Concept("star"), Concept("heart")]
    module = SDD(concepts=concepts, backbone=TinyBackbone(), **(ARGUMENTS | arguments))
    module.configure_model()
    return module


def followed():
    return TrajectoryBank(trajectories=2, steps=3, student=True, refresh=2)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"ema": 0.0},
        {"train": "all"},
        {"latents": followed()},
        {"latents": TrajectoryBank(trajectories=2, steps=3)},
    ],
    ids=["defaults", "no average", "all", "average's trajectories", "original's trajectories"],
)
def test_contract(arguments):
    check_method(SDD, **(VARIANT if arguments else {}), **(ARGUMENTS | arguments))


class TestLoss:
    def test_by_hand(self):
        module = sdd()
        for parameter in module.editable().values():
            parameter.data.add_(0.01)
        ask = lambda model, prompts: model.denoise(X, T, model.encode(prompts))  # noqa: E731
        prediction, unconditional = (
            ask(module.backbone, BATCH.prompts),
            ask(module.backbone, ["", ""]),
        )
        assert torch.allclose(
            module.erasure_loss(noisy(module, X, T, BATCH)),
            (prediction - unconditional).square().mean(),
        )
        assert not torch.allclose(
            unconditional, ask(module.original, ["", ""]), atol=1e-3
        )  # the target is the student's

    def test_the_target_has_no_gradient(self):
        module = sdd()
        parameters = list(module.editable().values())
        batch = noisy(module, X, T, BATCH)
        prediction = module.student(batch)
        with torch.no_grad():
            unconditional = module.student(batch, module.backbone.unconditional(2))
        by_hand = torch.autograd.grad(
            (prediction - unconditional).square().mean(), parameters, retain_graph=True
        )
        gradients = torch.autograd.grad(module.erasure_loss(noisy(module, X, T, BATCH)), parameters)
        assert all(torch.allclose(a, b) for a, b in zip(gradients, by_hand, strict=True))
        both = prediction - module.student(batch, module.backbone.unconditional(2))  # the control
        control = torch.autograd.grad(both.square().mean(), parameters)
        assert not all(torch.allclose(a, b) for a, b in zip(gradients, control, strict=True))


class Recording(SDD):
    """Notes the student's weights behind every step."""

    def optimizer_step(self, *args, **kwargs):
        super().optimizer_step(*args, **kwargs)
        self.history = [*getattr(self, "history", []), edit_of(self)]


class TestAverage:
    def test_what_is_saved_is_the_average_of_every_step(self):
        module = Recording(
            concepts=[Concept("cat")], backbone=TinyBackbone(), **(ARGUMENTS | {"ema": 0.8})
        )
        quick_fit(module, 3)
        for name, edited in edit_of(module).items():
            by_hand = dict(module.original.named_parameters())[name]
            for student in module.history:
                by_hand = 0.8 * by_hand + 0.2 * student[name]
            assert torch.allclose(edited, by_hand, atol=1e-6)
            assert not torch.allclose(edited, module.history[-1][name], atol=1e-6)  # the control

    def test_without_memory_the_student_is_saved(self):
        module = Recording(
            concepts=[Concept("cat")], backbone=TinyBackbone(), **(ARGUMENTS | {"ema": 0.0})
        )
        quick_fit(module, 3)
        assert all(
            torch.equal(edited, module.history[-1][name])
            for name, edited in edit_of(module).items()
        )

    def test_a_checkpoint_of_a_run_under_way_is_the_average_and_has_the_student_beside_it(
        self, tmp_path
    ):
        module = Recording(
            concepts=[Concept("cat")], backbone=TinyBackbone(), **(ARGUMENTS | {"ema": 0.8})
        )
        quick_fit(module, 2, total=4, save=tmp_path / "half.ckpt")
        saved = torch.load(tmp_path / "half.ckpt", weights_only=True)
        averaged = dict(module.average.named_parameters())
        for name, student in module.history[-1].items():
            assert torch.equal(saved["student"][name], student)
            assert torch.equal(saved["state_dict"][BACKBONE_PREFIX + name], averaged[name])

    def test_it_walks_the_trajectories(self, monkeypatch):
        bank, walkers = followed(), []
        module = sdd(latents=bank, lr=0.05)
        update = bank.update
        monkeypatch.setattr(
            bank, "update", lambda model, *rest: (walkers.append(model), update(model, *rest))
        )
        quick_fit(module, 1)
        assert walkers[0].student is module.average


class TestConcepts:
    def test_they_take_turns_in_the_loss_and_stand_together_on_the_trajectories(self):
        bank = TrajectoryBank(trajectories=3, steps=2)
        module = quick_fit(sdd(latents=bank), 1)
        rolled_out = bank.sentences
        joined = {
            concept: prompt.text
            for concept, prompt in zip(rolled_out.concepts, rolled_out.prompts, strict=True)
        }
        assert joined.keys() == {"cat", "star", "heart"}
        assert "cat, star, heart" in joined["cat"]
        assert "star, cat, heart" in joined["star"]
        assert module.noisy_batch(BATCH).sentences is BATCH

    def test_one_stands_alone(self):
        module = SDD(
            concepts=[Concept("cat")], backbone=TinyBackbone(), latents=TrajectoryBank(2, 2)
        )
        quick_fit(module, 1)
        assert all(prompt.text.endswith("cat") for prompt in module.latents.sentences.prompts)


@pytest.mark.parametrize("ema", [-0.1, 1.0])
def test_ema_out_of_range(ema):
    with pytest.raises(ErasureError, match="SDD needs ema of at least 0 and below 1; found"):
        sdd(ema=ema)


@pytest.mark.slow
def test_it_erases_the_cigarette_of_the_emoji_world_and_keeps_the_rest():
    arguments = numbers("sdd", lr=8e-4, latents=TrajectoryBank(4, 10))
    module = quick_fit(
        SDD(backbone="emoji-world", concepts=[Concept("cigarette")], **arguments), 30
    )
    assert recognised_before(module, ["cigarette"] * 4) == 1
    assert recognised(module.backbone, ["cigarette"] * 4) <= 0.25  # one of four was seen to stay
    assert recognised(module.backbone, KEPT) == recognised_before(module, KEPT) == 1


def test_its_latents_are_prepared_and_its_text_encoders_leave_like_those_of_any_method():
    images = GeneratedImages(images=1, steps=2)
    module = quick_fit(sdd(latents=images, offload_text=True, warmup=0), 1)
    assert not torch.equal(*(next(iter(edit_of(each).values())) for each in (module, sdd())))
    assert module.backbone._offloaded is not None
