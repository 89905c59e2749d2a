"""SPM: the contract, its loss by hand, its latent anchors, and the erasure with what
transport buys.
"""

import pytest
import torch
from contracts import VARIANT
from lightning import Callback, Trainer
from noisy import noisy
from recognition import KEPT, recognised, recognised_before
from shipped import numbers
from torch import nn

from erasure_lightning.backbones.tiny import TinyBackbone, TinySD3
from erasure_lightning.callbacks.edit_validation import EditValidation
from erasure_lightning.concepts.concept import Concept, PromptBatch
from erasure_lightning.data.datamodule import PromptData
from erasure_lightning.errors import ErasureError
from erasure_lightning.methods.spm import SPM
from erasure_lightning.retention.local_noise import LocalNoisePreservation
from erasure_lightning.testing import check_method, quick_fit
from erasure_lightning.training.trajectory_bank import TrajectoryBank

CONCEPTS = [Concept("cat", "dog"), Concept("star")]
BATCH = PromptBatch(["a photo of a {}", "the {} in a house"], ["cat", "star"], ["dog", ""], [0, 1])
X, T = torch.linspace(-2, 2, 512).view(2, 4, 8, 8), torch.tensor([100.0, 900.0])

#: What the shipped config gives.
ARGUMENTS = numbers("spm")


def spm(**arguments):
    module = SPM(concepts=CONCEPTS, backbone=TinyBackbone(), **(ARGUMENTS | arguments))
    module.configure_model()
    for parameter in module.trainable().values():  # so that student and original differ
        nn.init.normal_(parameter, std=0.1)
    return module


def predict(model, prompts):
    return model.denoise(X, T, model.encode(prompts))


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"latents": TrajectoryBank(trajectories=2, steps=3, student=True, refresh=2), "anchors": 2},
        {"transport": "none", "anchors": 0, "eta": 0.0},
    ],
    ids=["default", "student", "no transport"],
)
def test_contract(arguments):
    check_method(SPM, **(VARIANT if arguments else {}), **(ARGUMENTS | {"warmup": 1} | arguments))


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_the_erasing_loss_by_hand(eta):
    module = spm(eta=eta, anchors=0)
    called = predict(module.original, BATCH.prompts)
    anchor = torch.stack(
        [
            predict(module.original, ["a photo of a dog"] * 2)[0],
            predict(module.original, ["", ""])[1],
        ]
    )
    with module.membrane.fixed(torch.eye(2)):
        now = predict(module.backbone, BATCH.prompts)
    by_hand = (now - (anchor - eta * (called - anchor))).square().mean()
    assert torch.allclose(module.erasure_loss(noisy(module, X, T, BATCH)), by_hand)


def test_with_an_empty_anchor_it_is_the_loss_of_esd():
    module = spm(anchors=0)
    unanchored = PromptBatch(BATCH.templates, BATCH.concepts, ["", ""], [0, 1])
    uncond, called = predict(module.original, ["", ""]), predict(module.original, BATCH.prompts)
    with module.membrane.fixed(torch.eye(2)):
        by_hand = (predict(module.backbone, BATCH.prompts) - (2 * uncond - called)).square().mean()
    assert torch.allclose(module.erasure_loss(noisy(module, X, T, unanchored)), by_hand)


class TestLatentAnchors:
    def test_they_are_as_long_as_the_concept(self):
        module, states = spm(anchors=3), TinyBackbone().encode(BATCH.prompts)
        drawn = module.latent_anchors(states).tokens
        ratio = drawn.flatten(1).norm(dim=1) / states.tokens.flatten(1).norm(dim=1).repeat(3)
        assert len(ratio) == 6
        assert ((ratio > 0.8 - 1e-5) & (ratio < 1.2 + 1e-5)).all()
        assert ratio.std() > 0.01

    def test_they_cost_what_the_adapters_do_to_them(self):
        module = spm(anchors=1, anchor_weight=1.0)
        torch.manual_seed(5)
        both = module.erasure_loss(noisy(module, X, T, BATCH))
        torch.manual_seed(5)
        module.anchor_weight = 0.0
        assert both > module.erasure_loss(noisy(module, X, T, BATCH))

    def test_their_loss_by_hand(self):
        module = spm(anchors=2, anchor_weight=0.5)
        batch = noisy(module, X, T, BATCH)
        torch.manual_seed(5)
        both = module.erasure_loss(batch)
        torch.manual_seed(5)
        states = module.latent_anchors(module.backbone.encode(BATCH.prompts))
        x, t = X.repeat(2, 1, 1, 1), T.repeat(2)
        with module.membrane.fixed(torch.eye(2).repeat(2, 1)):
            prediction = module.backbone.denoise(x, t, states)
        error = (prediction - module.original.denoise(x, t, states)).square().mean()
        module.anchors = 0
        by_hand = module.erasure_loss(batch) + 0.5 * error
        assert torch.allclose(both, by_hand, rtol=1e-5)
        assert error > 1e-4  # the control

    def test_they_hold_the_rest_where_it_was(self):
        def moved(weight):
            module = SPM(
                concepts=CONCEPTS,
                backbone=TinyBackbone(),
                **(ARGUMENTS | {"anchor_weight": weight, "warmup": 1}),
            )
            quick_fit(module, 8)
            with module.membrane.fixed(torch.ones(2, 2)):
                return (
                    predict(module.backbone, ["a car", "a boat"])
                    - predict(module.original, ["a car", "a boat"])
                ).norm()

        assert moved(1000.0) < 0.5 * moved(0.0)


def test_a_step_trains_the_adapters_of_its_concept_alone():
    module = spm()
    batch = PromptBatch(["a {}", "the {}"], ["star", "star"], ["", ""], [1, 1])
    module.erasure_loss(noisy(module, X, T, batch)).backward()
    for parameter in module.trainable().values():
        assert not parameter.grad[0].any()
        assert parameter.grad[1].any()


class Moves(Callback):
    """Whose rows each step has changed, of the down-factors."""

    def __init__(self):
        self.of_steps = []

    def rows(self, module):
        return [p.detach().clone() for n, p in module.trainable().items() if n.endswith("down")]

    def on_train_batch_start(self, trainer, pl_module, *_):
        self.before = self.rows(pl_module)

    def on_train_batch_end(self, trainer, pl_module, *_):
        pairs = zip(self.before, self.rows(pl_module), strict=True)
        changed = torch.stack([(a != b).flatten(1).any(dim=1) for a, b in pairs]).any(dim=0)
        self.of_steps.append(changed.tolist())


def steps_with_one_sentence(steps, *callbacks):
    """Whose adapters each step of a fit has moved, whose batches are single sentences."""
    module, moves = spm(anchors=0, warmup=0, optimizer="adamw"), Moves()
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    quiet |= {"enable_model_summary": False, "limit_val_batches": 0}
    trainer = Trainer(max_steps=steps, accelerator="cpu", callbacks=[moves, *callbacks], **quiet)
    trainer.fit(module, PromptData(batch_size=1))
    return moves.of_steps


def test_a_step_moves_the_adapters_of_its_own_concepts_alone():
    steps = steps_with_one_sentence(4)
    assert sorted(steps) == [[False, True]] * 2 + [[True, False]] * 2


def test_retained_prompts_train_the_adapters_of_all_concepts():
    retention = LocalNoisePreservation(prompts=["a cat", "a star"])
    assert steps_with_one_sentence(2, retention) == [[True, True]] * 2


@pytest.mark.parametrize("transport", ["rescaled", "cosine", "none"])
def test_the_membrane_has_the_method_s_settings(transport):
    module = spm(transport=transport, templates=["{}", "a {}", "my {}"])
    assert module.membrane.transport == (transport != "none")
    assert module.membrane.unrelated.any() == (transport == "rescaled")
    sentences = module.membrane.sentences
    own = module.original.encode(["star", "a star", "my star"]).tokens
    assert torch.allclose(sentences[1], own, atol=1e-5)


def test_templates_have_retained_things_as_those_of_the_data():
    module = spm(templates=["a {thing} and a {}"])
    (thing,) = module.prompts.with_things(["{thing}"])
    expected = spm(templates=[f"a {thing} and a {{}}"]).membrane.sentences
    assert torch.equal(module.membrane.sentences, expected)


def test_latent_anchors_leave_the_channels_that_clip_s_states_lack():
    module = SPM(concepts=CONCEPTS, backbone=TinySD3(), **ARGUMENTS)
    module.configure_model()
    states = module.backbone.encode(BATCH.prompts)
    anchors = module.latent_anchors(states).tokens
    lacking = (states.tokens == 0).repeat(module.anchors, 1, 1)
    assert lacking.any()
    assert not anchors[lacking].any()
    assert anchors[~lacking].all()


def test_what_the_membrane_remembers_is_saved_and_not_trained():
    module = spm()
    remembered = set(module.editable()) - set(module.trainable())
    assert remembered == {
        f"denoiser.adapter.{name}" for name in ("sentences", "words", "unrelated")
    }
    assert not any(module.editable()[name].requires_grad for name in remembered)


def test_a_run_that_learned_nothing_is_refused():
    with pytest.raises(ErasureError, match="SPM changed none"):
        quick_fit(SPM(concepts=CONCEPTS, backbone=TinyBackbone(), lr=0.0), 2, EditValidation())


def test_negative_numbers_are_refused():
    with pytest.raises(ErasureError, match="anchor_weight of at least 0; found -1"):
        SPM(backbone="emoji-world", concepts=CONCEPTS, anchor_weight=-1.0)


@pytest.mark.slow
def test_it_erases_the_cigarette_of_the_emoji_world_and_transport_keeps_the_rest():
    arguments = numbers("spm", lr=3e-2, latents=TrajectoryBank(trajectories=4, steps=10))
    module = quick_fit(
        SPM(backbone="emoji-world", concepts=[Concept("cigarette", "lollipop")], **arguments), 12
    )
    assert recognised_before(module, ["cigarette"] * 4) == 1
    assert recognised(module.backbone, ["cigarette"] * 4) == 0
    assert recognised(module.backbone, KEPT) == recognised_before(module, KEPT) == 1
    moved = {}
    for transport in (True, False):
        module.membrane.transport = transport
        change = [prediction_of(module.backbone, KEPT), prediction_of(module.original, KEPT)]
        moved[transport] = (change[0] - change[1]).square().mean()
    assert moved[True] < 0.1 * moved[False]


def prediction_of(model, words):
    with torch.no_grad():
        x = model.noise(range(len(words)))
        return model.denoise(
            x, torch.full((len(words),), 600), model.encode([f"a {word}" for word in words])
        )
