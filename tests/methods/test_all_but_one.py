"""All but One: what guidance does to its target, and a step's cost, with controls."""

import json
from functools import cache
from types import SimpleNamespace

import pytest
import torch
from contracts import VARIANT
from lightning.pytorch.callbacks import Callback
from noisy import noisy
from recognition import KEPT, drawn, named, recognised
from shipped import numbers
from torch import nn

from erasure_lightning.backbones.tiny import TinyBackbone
from erasure_lightning.callbacks.cost import Cost
from erasure_lightning.concepts.concept import Concept, PromptBatch
from erasure_lightning.diffusion.inversion import purify_images
from erasure_lightning.diffusion.sampling import sample_images
from erasure_lightning.errors import ErasureError
from erasure_lightning.methods.all_but_one import AllButOne
from erasure_lightning.testing import check_method, quick_fit
from erasure_lightning.training.regression import Regression
from erasure_lightning.training.trajectory_bank import TrajectoryBank

CONCEPTS = [Concept("cat", "dog"), Concept("star")]
BATCH = PromptBatch(["a photo of a {}", "the {} in a house"], ["cat", "star"], ["dog", ""], [0, 1])
BOTH = pytest.mark.parametrize("prediction", ["epsilon", "velocity"])

#: What the shipped config gives.
ARGUMENTS = numbers("all-but-one")


def all_but_one(backbone=None, **arguments):
    module = AllButOne(
        concepts=CONCEPTS, backbone=backbone or TinyBackbone(), **(ARGUMENTS | arguments)
    )
    module.configure_model()
    return module


def latents(count=2):
    generator = torch.Generator().manual_seed(3)
    return (
        torch.randn(count, 4, 8, 8, generator=generator),
        torch.arange(100.0, 1000.0, 850 // count)[:count],
    )


def predict(model, prompts, x, t):
    return model.denoise(x, t, model.encode(prompts))


def loss_of(module, batch=BATCH):
    return module.erasure_loss(noisy(module, *latents(), batch))


def disturb(module, size=0.02):
    generator = torch.Generator().manual_seed(4)
    for parameter in module.editable().values():
        parameter.data.add_(size * torch.randn(parameter.shape, generator=generator))


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"latents": TrajectoryBank(trajectories=2, steps=3)},
        {"train": "x-strict", "lam": 0.0, "detach_unconditional": True},
        {"train": "u", "alternative": 0.5, "eta": 1.0},
    ],
    ids=lambda arguments: ", ".join(arguments) or "default",
)
def test_contract(arguments):
    check_method(
        AllButOne, **(VARIANT if arguments else {}), **(ARGUMENTS | {"warmup": 1} | arguments)
    )


class TestLoss:
    """Section 4.2 by hand."""

    @BOTH
    @pytest.mark.parametrize(
        ("alternative", "eta", "lam"), [(1.0, 0.0, 1.0), (0.5, 2.0, 0.3), (0.0, 1.0, 0.0)]
    )
    def test_it_is_the_formula(self, prediction, alternative, eta, lam):
        module = all_but_one(
            TinyBackbone(prediction=prediction), alternative=alternative, eta=eta, lam=lam
        )
        disturb(module)
        x, t = latents()
        unconditional, conditional = (
            predict(module.backbone, p, x, t) for p in (["", ""], BATCH.prompts)
        )
        before = predict(module.original, ["", ""], x, t)
        anchor, concept = (
            predict(module.original, p, x, t) - before
            for p in (BATCH.anchor_or_empty_prompts, BATCH.prompts)
        )
        by_hand = (
            (conditional - unconditional - (alternative * anchor - eta * concept)).square().mean()
        )
        by_hand = by_hand + lam * (unconditional - before).square().mean()
        assert torch.allclose(module.erasure_loss(noisy(module, x, t, BATCH)), by_hand)

    def test_at_the_original_the_drift_is_nothing_and_the_guidance_is_not(self):
        whole, surgical = (loss_of(all_but_one(lam=lam)) for lam in (1e6, 0.0))
        assert surgical > 1e-4
        assert torch.allclose(whole, surgical)

    @BOTH
    def test_both_terms_of_a_velocity_are_those_of_noise_by_one_factor(self, prediction):
        """Why there is no conversion: neither the optimum nor what ``lam`` weighs depends on it."""
        module = all_but_one(TinyBackbone(prediction=prediction))
        disturb(module)
        x, t = latents()
        process = module.backbone.process
        signal = process.alpha(t).sqrt().view(-1, 1, 1, 1) if prediction == "velocity" else 1.0
        batch = noisy(module, x, t, BATCH)
        native = [*module.predictions(batch), batch.teacher.unconditional]
        unconditional, conditional, before = (process.epsilon(p, x, t) for p in native)
        assert torch.allclose(
            conditional - unconditional, signal * (native[1] - native[0]), atol=1e-6
        )
        assert torch.allclose(unconditional - before, signal * (native[0] - native[2]), atol=1e-6)

    def test_only_terms_with_a_weight_are_predicted(self):
        calls = []
        module = all_but_one(alternative=0.0, eta=1.0, lam=0.0)
        module.original.denoiser.register_forward_hook(lambda *_: calls.append(1))
        module.erasure_loss(noisy(module, *latents(), BATCH))
        assert len(calls) == 2  # the concept and no prompt, not the alternative

    @pytest.mark.parametrize(("another", "predictions"), [(True, 2), (False, 1)])
    def test_a_rank_without_anchors_predicts_with_one_that_has_some(self, another, predictions):
        """Sharded weights are gathered by all ranks together, or each waits for the others."""
        calls = []
        module = all_but_one(alternative=1.0, eta=0.0)
        module.original.any_rank = lambda flag: flag or another
        module.original.denoiser.register_forward_hook(lambda *_: calls.append(1))
        without = BATCH.rows([1, 1])
        teacher = noisy(module, *latents(), without).teacher
        target = module.target(teacher)
        assert target.abs().max() < 1e-6
        teacher.unconditional  # noqa: B018  (the drift term's)
        assert len(calls) == predictions


def still(module):
    """Disturb the text layers so that the empty prompt's prediction stays exactly where it was."""
    rows = module.original.encode([""]).tokens[0].double()
    beside = torch.eye(rows.shape[1]).double() - torch.linalg.pinv(rows) @ rows
    for layer in module.backbone.text_layers().values():
        layer.weight.data.add_((0.2 * torch.randn_like(layer.weight).double() @ beside).float())


class TestReductionToESD:
    """Section 9 (7): ``(a, eta) = (0, 1)``, conditional branch alone, no drift term."""

    def losses(self, disturbed):
        module = all_but_one(
            alternative=0.0, eta=1.0, lam=0.0, detach_unconditional=True, train="x-strict"
        )
        disturbed(module)
        x, t = latents()
        before, concept = (predict(module.original, p, x, t) for p in (["", ""], BATCH.prompts))
        esd = (
            (predict(module.backbone, BATCH.prompts, x, t) - (before - (concept - before)))
            .square()
            .mean()
        )
        weights, ours = (
            list(module.trainable().values()),
            module.erasure_loss(noisy(module, x, t, BATCH)),
        )
        return [(loss, torch.autograd.grad(loss, weights)) for loss in (ours, esd)]

    def test_loss_and_gradient_are_those_of_esd_while_the_unconditional_prediction_stays(self):
        (ours, gradients), (theirs, esd_gradients) = self.losses(still)
        assert torch.allclose(ours, theirs, rtol=1e-3)
        assert all(
            torch.allclose(a, b, rtol=1e-2, atol=1e-6)
            for a, b in zip(gradients, esd_gradients, strict=True)
        )

    def test_once_it_has_drifted_they_differ(self):
        (ours, _), (theirs, _) = self.losses(lambda module: disturb(module, 0.2))
        assert not torch.allclose(ours, theirs, rtol=1e-2)


PROMPTS = ["", "cat", "dog", "star"]


class Table(nn.Module):
    """What a model without limits could learn: an answer of its own for every prompt."""

    def __init__(self):
        super().__init__()
        self.config = SimpleNamespace(sample_size=8, in_channels=4, time_cond_proj_dim=None)
        self.answers = nn.Parameter(
            torch.randn(len(PROMPTS), 4, 8, 8, generator=torch.Generator().manual_seed(0))
        )


class TableBackbone(TinyBackbone):
    def __init__(self, **arguments):
        super().__init__(**arguments)
        self.denoiser = Table()
        self.known = self.encode(PROMPTS).tokens.flatten(1)

    def cross_attention_parameters(self):
        return {"denoiser.answers": self.denoiser.answers}

    def denoise(self, x, t, conditioning, guidance=None):
        rows = torch.cdist(conditioning.tokens.flatten(1), self.known).argmin(dim=1)
        return x.tanh() + self.denoiser.answers[rows]


@cache
def at_the_optimum(prediction="epsilon", **arguments):
    """A table trained to convergence, and the change of each of its predictions."""
    module = all_but_one(TableBackbone(prediction=prediction), **arguments)
    batch, optimizer = (
        PromptBatch(["{}"] * 2, ["cat", "star"], ["dog", ""], [0, 1]),
        torch.optim.SGD(module.trainable().values(), 1.0),
    )
    scale = 4 * 8 * 8  # of the mean in the loss
    for _ in range(300):
        optimizer.zero_grad()
        (
            scale * module.erasure_loss(noisy(module, *latents(), batch)) / (2 + 2 * module.lam)
        ).backward()
        optimizer.step()
    now, before = (
        dict(zip(PROMPTS, m.denoiser.answers.detach(), strict=True))
        for m in (module.backbone, module.original)
    )
    return module, now, before


class TestOptimum:
    """Section 9 (4)."""

    @BOTH
    @pytest.mark.parametrize("lam", [0.2, 1.0, 5.0])
    def test_the_concept_becomes_its_alternative_and_nothing_stays_nothing(self, prediction, lam):
        _, now, before = at_the_optimum(prediction, lam=lam)
        assert torch.allclose(now["cat"], before["dog"], atol=1e-3)
        assert torch.allclose(now[""], before[""], atol=1e-3)
        assert not torch.allclose(now["cat"], before["cat"], atol=0.5)

    @BOTH
    @pytest.mark.parametrize("guidance", [1.0, 3.0, 7.5])
    def test_images_are_the_alternative_s_at_any_guidance(self, prediction, guidance):
        module, *_ = at_the_optimum(prediction)
        ask = {"seeds": [5], "steps": 4, "guidance": guidance}
        expected = sample_images(module.original, ["dog"], **ask)
        assert torch.allclose(sample_images(module.backbone, ["cat"], **ask), expected, atol=1e-3)
        assert not torch.allclose(
            sample_images(module.original, ["cat"], **ask), expected, atol=0.05
        )

    def test_without_the_drift_term_half_of_the_way_is_gone_by_the_unconditional_prediction(self):
        module, now, before = at_the_optimum(lam=0.0)
        gap = ((before["cat"] - before["dog"]) + (before["star"] - before[""])) / 3
        assert torch.allclose(now[""] - before[""], gap, atol=1e-3)
        ask = {"seeds": [5], "steps": 4, "guidance": 3.0}
        assert not torch.allclose(
            sample_images(module.backbone, ["dog"], **ask),
            sample_images(module.original, ["dog"], **ask),
            atol=0.05,
        )

    def test_the_conditional_branch_alone_leaves_it_where_it_was(self):
        _, now, before = at_the_optimum(lam=0.0, detach_unconditional=True)
        assert torch.equal(now[""], before[""])
        assert torch.allclose(now["cat"], before["dog"], atol=1e-3)

    def test_without_an_alternative_guidance_is_zero(self):
        module, now, before = at_the_optimum()
        assert torch.allclose(now["star"], before[""], atol=1e-3)
        for model, same in ((module.backbone, True), (module.original, False)):
            far, near = (
                sample_images(model, ["star"], [5], steps=4, guidance=guidance)
                for guidance in (7.5, 1.0)
            )
            assert torch.allclose(far, near, atol=1e-2) is same


class TestUNet:
    """The same on a UNet whose cross-attention alone may change."""

    def test_where_both_terms_vanish_the_images_are_the_alternative_s(self):
        module = all_but_one(train="x-strict")
        concept, anchor, unconditional = (
            module.original.encode([p]).tokens[0].double() for p in ("a cat", "a dog", "")
        )
        weights = [layer.weight for layer in module.backbone.text_layers().values()]
        equations = Regression(concept.new_zeros(concept.shape[1], concept.shape[1]))
        equations.redirect(concept, anchor)
        equations.keep(unconditional)
        for weight, solved in zip(weights, equations.solve(weights, 1e-9), strict=True):
            weight.data.copy_(solved)
        batch = PromptBatch(["a {}"] * 2, ["cat"] * 2, ["dog"] * 2, [0, 0])
        assert module.erasure_loss(noisy(module, *latents(), batch)) < 1e-3 * loss_of(
            all_but_one(), batch
        )
        for guidance in (1.0, 7.5):
            ask = {"seeds": [0], "steps": 4, "guidance": guidance}
            expected = sample_images(module.original, ["a dog"], **ask)
            before, after = (
                sample_images(m, ["a cat"], **ask) - expected
                for m in (module.original, module.backbone)
            )
            assert after.abs().max() < 0.05 * before.abs().max()

    @BOTH
    def test_the_unconditional_prediction_drifts_unless_it_is_held(self, prediction):
        x, t = latents(8)
        drift = {}
        for lam in (0.0, 1.0):
            module = quick_fit(
                all_but_one(TinyBackbone(prediction=prediction), lam=lam, lr=3e-3), 15
            )
            change = predict(module.backbone, [""] * 8, x, t) - predict(
                module.original, [""] * 8, x, t
            )
            drift[lam] = change.square().mean()
        assert drift[1.0] < 0.2 * drift[0.0]

    @pytest.mark.parametrize(
        ("train", "parts"),
        [
            ("x", {"to_q", "to_k", "to_v", "to_out"}),
            ("x-strict", {"to_k", "to_v"}),
        ],
    )
    def test_gradients_reach_the_chosen_parameters_alone(self, train, parts):
        """Section 9 (6)."""
        module = all_but_one(train=train)
        disturb(module)
        module.erasure_loss(noisy(module, *latents(), BATCH)).backward()
        reached = {name for name, p in module.backbone.named_parameters() if p.grad is not None}
        assert reached == set(module.editable())
        assert {name.split(".attn2.")[1].split(".")[0] for name in reached} == parts
        assert all(
            p.grad is None
            for p in module.original.parameters()
            if not any(p is q for q in module.backbone.parameters())
        )


class Queries(Callback):
    """Denoiser calls of each step: which model, about how many latents, and with gradient
    or not.
    """

    def on_train_start(self, trainer, module):
        self.steps = []
        for name, model in (("student", module.backbone), ("original", module.original)):
            model.denoiser.register_forward_hook(
                lambda _, inputs, __, name=name: self.steps[-1].append(
                    (name, len(inputs[0]), torch.is_grad_enabled())
                )
            )

    def on_train_batch_start(self, *_):
        self.steps.append([])


def test_once_the_bank_is_complete_a_step_is_one_batch_of_the_student(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    calls, bank = Queries(), TrajectoryBank(trajectories=2, steps=3)
    quick_fit(all_but_one(latents=bank, warmup=1), 24, calls, Cost())
    assert calls.steps[0] == [("original", 4, False)] * 3 + [
        ("student", 4, True),
        ("original", 2, False),
    ]
    assert calls.steps[12:] == [[("student", 4, True)]] * 12
    cost = json.loads((tmp_path / "cost.json").read_text())
    rollouts, alternatives = 2 * 2 * 3, 2 * 3
    assert cost["evaluations"] == rollouts + alternatives + 24 * 4
    assert cost["backwards"] == 24 * 4


@pytest.mark.parametrize("weight", ["lam", "eta"])
def test_a_weight_below_zero_is_refused(weight):
    with pytest.raises(ErasureError, match=f"AllButOne needs {weight} of at least 0; found -1"):
        all_but_one(**{weight: -1.0})


@pytest.mark.slow
def test_it_erases_the_cigarette_from_prompts_and_from_images_and_retains_the_rest():
    arguments = numbers("all-but-one", lr=1.6e-3, latents=TrajectoryBank(trajectories=4, steps=10))
    module = quick_fit(
        AllButOne(backbone="emoji-world", concepts=[Concept("cigarette", "lollipop")], **arguments),
        20,
    )
    smoke, rest = ["cigarette"] * 2, KEPT[:2]
    shown, smoked = drawn(module.original, rest), drawn(module.original, smoke)
    world = module.original.world
    assert named(world, smoked, smoke) == named(world, shown, rest) == 1
    assert recognised(module.backbone, ["cigarette"] * 4) == 0
    assert recognised(module.backbone, KEPT) == 1
    cleaned, left = (
        purify_images(module.original, module.backbone, images, prompts, steps=10)
        for images, prompts in ((smoked, ["a cigarette"] * 2), (shown, [""] * 2))
    )
    assert named(world, cleaned.reconstructed, smoke) == 1
    assert named(world, cleaned.purified, smoke) == 0
    assert named(world, left.purified, rest) == 1
