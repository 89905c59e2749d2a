"""TRCE: the contract, both stages by hand, the margin, and which steps are early."""

import pytest
import torch
from contracts import VARIANT
from noisy import noisy

from erasure_lightning.backbones.conditioning import END
from erasure_lightning.backbones.tiny import TinyBackbone, TinyXL
from erasure_lightning.concepts.concept import THING_TEMPLATES, Concept, PromptBatch
from erasure_lightning.concepts.vocabulary import Vocabulary
from erasure_lightning.errors import ErasureError
from erasure_lightning.methods.trce import TRCE
from erasure_lightning.testing import check_method, edit_of, quick_fit
from erasure_lightning.training.regression import Regression, corrected_weight
from erasure_lightning.training.trajectory_bank import TrajectoryBank

CONCEPTS = [Concept("cat", "dog"), Concept("star", "heart")]
BATCH = PromptBatch(["a photo of a {}", "the {} in a house"], ["cat", "star"], ["dog", ""], [0, 1])
X, T = torch.linspace(-2, 2, 512).view(2, 4, 8, 8), torch.tensor([100.0, 900.0])


def trce(moved=0.0, family=TinyBackbone, **arguments):
    module = TRCE(concepts=CONCEPTS, backbone=family(), **({"lr": 1e-3} | arguments))
    module.configure_model()
    for parameter in module.trainable().values():
        parameter.data.add_(moved * torch.randn_like(parameter))
    return module


def bank(**arguments):
    return TrajectoryBank(**({"trajectories": 2, "steps": 4} | arguments))


@pytest.mark.parametrize(
    "arguments",
    [{}, {"closed_form": False, "latents": bank()}],
    ids=["stages", "second stage alone"],
)
def test_contract(arguments):
    check_method(
        TRCE, **(VARIANT if arguments else {}), **({"lr": 1e-3, "preserve_scale": 1e-2} | arguments)
    )


class TestStage1:
    @pytest.mark.parametrize("preserve_scale", [0.0, 2.0])
    def test_by_hand(self, preserve_scale):
        module = trce(preserve_scale=preserve_scale, ridge=0.3)
        original = module.original
        equations = Regression(torch.zeros(32, 32))
        for concept in CONCEPTS:
            each = [
                [t.format(word) for t in THING_TEMPLATES] for word in (concept.name, concept.anchor)
            ]
            concepts, anchors = (
                (read := original.encode(prompts)).tokens[read.positions(END)] for prompts in each
            )
            equations.redirect(concepts, anchors, 1 / 20)
        vocabulary = Vocabulary(None, CONCEPTS)
        captions = [c for label in vocabulary.others for c in vocabulary.retained_captions(label)]
        for i in range(0, len(captions), 100):
            rows = original.encode(captions[i : i + 100]).tokens.flatten(0, 1)
            equations.keep(rows, preserve_scale / len(captions))
        correction = equations.correction(0.3)
        solution = module.stage_1()
        for name, layer in original.text_layers().items():
            expected = corrected_weight(layer.weight, correction)
            assert torch.allclose(solution[f"{name}.weight"], expected, atol=1e-5)
            assert not torch.allclose(expected, layer.weight, atol=1e-2)  # the control

    @pytest.mark.parametrize("family", [TinyBackbone, TinyXL])
    def test_the_end_of_text_is_the_anchors_and_captions_stay(self, family):
        def distance(prompt, other, edited=True, **arguments):
            """Of the new end-of-text image from the original's for another prompt."""
            module = trce(family=family, ridge=1e-3, **arguments)
            state, target = (
                (read := module.original.encode([p])).tokens[read.positions(END)]
                for p in (prompt, other)
            )
            layers = module.original.text_layers()
            solution = module.stage_1() if edited else {}
            gaps = [
                state @ solution.get(f"{name}.weight", layer.weight).T - target @ layer.weight.T
                for name, layer in layers.items()
            ]
            return sum(gap.square().sum() for gap in gaps).item()

        pair = "a photo of a cat", "a photo of a dog"
        assert distance(*pair, preserve_scale=0.0) < 0.1 * distance(*pair, edited=False)
        assert distance(*pair, edited=False) > 0  # the control
        held = distance("a tree", "a tree", preserve_scale=10.0)
        assert held < 0.5 * distance("a tree", "a tree", preserve_scale=0.0)

    def test_stage_2_leaves_its_layers_as_they_are(self):
        module = trce()
        solution = module.stage_1()
        edit = edit_of(quick_fit(trce(), 2))
        assert all(torch.allclose(edit[name], solution[name], atol=1e-6) for name in solution)
        assert any(not edit[n].equal(module.original.get_parameter(n)) for n in module.trainable())


class TestStage2:
    def test_the_loss_by_hand(self):
        module = trce(moved=0.1, guidance=2.0, margin=0.5)
        now, before = module.backbone, module.original

        def predict(model, prompts):
            return model.denoise(X, T, model.encode(prompts))

        empty = ["", ""]
        concept, none = (predict(before, each) for each in (BATCH.prompts, empty))
        anchor = predict(
            before, [BATCH.anchor_prompts[0], ""]
        )  # no prompt where there is no anchor
        preferred, rejected = (each + 2 * (each - none) for each in (anchor, concept))
        loss = 0
        for prediction in (predict(now, BATCH.prompts), predict(now, empty)):
            gaps = [
                (prediction - each).square().mean(dim=(1, 2, 3)) for each in (preferred, rejected)
            ]
            loss = loss + (gaps[0] - gaps[1] + 0.5).clamp(min=0).mean() / 2
        assert torch.allclose(module.erasure_loss(noisy(module, X, T, BATCH)), loss, atol=1e-6)

    def test_beyond_the_margin_nothing_is_trained(self):
        """Where the reference is the anchor's, the anchor's prediction has no gradient left."""

        def gradients(margin):
            module = trce(margin=margin, guidance=0.0)
            batch = noisy(module, X, T, BATCH)
            # Of the anchors' sentences, which are nearer to the anchor than to the concept.
            prediction = module.student(
                batch, module.backbone.encode(BATCH.anchor_or_empty_prompts)
            )
            loss = module.margin_loss(batch, prediction).sum()
            each = torch.autograd.grad(loss, list(module.trainable().values()))
            return max(gradient.abs().max().item() for gradient in each)

        assert gradients(0.0) == 0
        assert gradients(1e3) > 0  # the control

    @pytest.mark.parametrize(("early", "steps"), [(0.5, 2), (0.1, 1), (1.0, 4)])
    def test_early_steps_of_the_bank(self, early, steps):
        module = trce(early=early, latents=bank())
        times = module.backbone.sampler(4).times[:steps].tolist()
        drawn = {t for _ in range(20) for t in module.noisy_batch(BATCH).t.tolist()}
        assert drawn == set(times)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"margin": -1.0}, "TRCE needs margin of at least 0; found -1.0"),
        ({"ridge": 0.0}, "TRCE needs ridge above 0; found 0.0"),
        ({"early": 0.0}, "TRCE needs early above 0 and at most 1; found 0.0"),
    ],
)
def test_arguments_out_of_range(arguments, words):
    with pytest.raises(ErasureError, match=words):
        trce(**arguments)
