"""RealEra: the contract of both stages, and the erasure, with controls."""

from types import SimpleNamespace

import pytest
import torch
from contracts import VARIANT
from noisy import noisy
from recognition import KEPT, drawn, names, recognised, recognised_before
from shipped import numbers

from erasure_lightning.backbones.tiny import TinyBackbone, TinyXL
from erasure_lightning.concepts.concept import THING_TEMPLATES, Concept, PromptBatch
from erasure_lightning.errors import ErasureError
from erasure_lightning.methods.realera import RealEra, RealEraClosedForm
from erasure_lightning.retention.local_noise import LocalNoisePreservation
from erasure_lightning.testing import check_method, edit_of, quick_fit
from erasure_lightning.training.neighbours import orthogonal_states, replace_states
from erasure_lightning.training.prompt_states import aligned_states
from erasure_lightning.training.regression import Regression, corrected_weight
from erasure_lightning.training.trajectory_bank import TrajectoryBank

CONCEPTS = [Concept("cat", "dog"), Concept("star", "heart")]
BATCH = PromptBatch(
    ["a photo of a {}", "the {} in a house"], ["cat", "star"], ["dog", "heart"], [0, 1]
)

#: What the shipped configs give, by class.
ARGUMENTS = {RealEra: numbers("realera"), RealEraClosedForm: numbers("realera-closed-form")}


def build(method=RealEra, concepts=CONCEPTS, **arguments):
    module = method(concepts=concepts, backbone=TinyBackbone(), **(ARGUMENTS[method] | arguments))
    module.configure_model()
    return module


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"merge": False},
        {"closed_form": False, "neighbours": 0, "beyond": 0},
        {"sampler": "reject", "neighbours": 2, "beyond": 2, "min_cosine": 0.3},
        {
            "latents": TrajectoryBank(trajectories=2, steps=2),
            "noise_weight": 0.0,
            "max_distance": 14.0,
        },
    ],
    ids=lambda arguments: ", ".join(arguments) or "default",
)
def test_contract(arguments):
    check_method(
        RealEra, **(VARIANT if arguments else {}), **(ARGUMENTS[RealEra] | {"lr": 1e-2} | arguments)
    )


@pytest.mark.parametrize(
    "arguments", [{}, {"sampler": "direct", "neighbours": 3, "beyond": 3}], ids=str
)
def test_contract_of_stage_a_alone(arguments):
    check_method(
        RealEraClosedForm,
        **(VARIANT if arguments else {}),
        **(ARGUMENTS[RealEraClosedForm] | arguments),
    )


class TestStageA:
    def test_without_neighbours_and_beyond_it_is_the_plain_closed_form_of_the_same_tokens(self):
        """Section 9 (7)."""
        module = quick_fit(
            build(RealEraClosedForm, neighbours=0, beyond=0, erase_weight=2.0, ridge=0.3), 1
        )
        by_hand, original = Regression(torch.zeros(32, 32)), module.original
        for concept in CONCEPTS:
            batch = PromptBatch(list(THING_TEMPLATES), [concept.name] * 10, [concept.anchor] * 10)
            plain = original.encode(batch.prompts)
            images = aligned_states(original.encode(batch.anchor_prompts), like=plain).flatten(0, 1)
            by_hand.redirect(plain.tokens.flatten(0, 1), images, 2.0 / (10 * 16))
        correction = by_hand.correction(0.3)
        for name, layer in original.text_layers().items():
            expected = corrected_weight(layer.weight, correction)
            assert torch.allclose(
                module.backbone.get_parameter(f"{name}.weight"), expected, atol=1e-5
            )
            assert not torch.allclose(
                expected, layer.weight, atol=1e-2
            )  # the control: something was erased

    def test_with_no_weight_on_erasure_nothing_changes(self):
        """Section 9 (1)."""
        module = build(RealEraClosedForm, erase_weight=0.0)
        originals = module.original.text_layers()
        assert all(
            torch.equal(weight, originals[name.removesuffix(".weight")].weight)
            for name, weight in module.stage_a().items()
        )

    def test_neighbours_follow_the_concept_further_than_without(self):
        def distance(neighbours):
            """Of the neighbours' images from the anchor's, in the distance at the start."""
            weights = {"erase_weight": 1.0, "beyond_weight": 1.0, "ridge": 1e-3, "min_cosine": 0.5}
            module = build(RealEraClosedForm, [CONCEPTS[0]], neighbours=neighbours, **weights)
            plain, anchor = module.original.embed(["a cat"]), module.original.embed(["a dog"])
            near = module.neighbourhood.draw(
                module.original.contextualize(plain).tokens[:, -1:].expand(1, 500, -1)
            )
            expected = module.original.contextualize(anchor).tokens[:, -1:]
            edited, old = module.stage_a(), module.original.text_layers()
            pairs = [(edited[f"{n}.weight"], old[n].weight) for n in old]
            after = sum((near @ w.T - expected @ o.T).square().sum() for w, o in pairs)
            return (after / sum(((near - expected) @ o.T).square().sum() for _, o in pairs)).item()

        assert distance(50) < 0.8 * distance(0)

    def test_stage_b_begins_where_stage_a_ends(self):
        one, two = build(RealEra, seed=4), build(RealEraClosedForm, seed=4)
        assert not any("base_layer" in name for name in edit_of(two))
        quick_fit(two, 1)
        quick_fit(one, 1)
        for name, weight in edit_of(two).items():
            beneath = one.backbone.get_parameter(name)  # merged, after a first step at a small rate
            assert torch.allclose(beneath, weight, atol=5e-3)
            assert not torch.allclose(weight, one.original.get_parameter(name), atol=2e-2)

    def test_samples_are_those_of_the_seed(self):
        one, other, again = (
            build(RealEraClosedForm, sampler="direct", neighbours=2, beyond=2, seed=seed).stage_a()
            for seed in (0, 1, 0)
        )
        assert all(torch.equal(one[name], again[name]) for name in one)
        assert not any(torch.allclose(one[name], other[name], atol=1e-4) for name in one)

    def test_what_lies_beyond_has_one_weight_for_all_concepts(self):
        assert build(RealEraClosedForm, beyond_weight=3.0).mining.beyond_weight == 1.5

    def test_samples_come_near_the_expectation(self):
        exact, few, many = (
            build(RealEraClosedForm, sampler=sampler, neighbours=n, beyond=n).stage_a()
            for sampler, n in (("expectation", 200), ("direct", 2), ("direct", 200))
        )
        gap = lambda a: sum((a[n] - exact[n]).square().sum() for n in exact).item()  # noqa: E731
        assert gap(many) < 0.2 * gap(few)


class TestStageB:
    x, t = torch.randn(2, 4, 8, 8), torch.tensor([100.0, 900.0])

    def batch(self, module):
        return noisy(module, self.x, self.t, BATCH)

    def shaken(self, **arguments):
        module = build(**arguments)
        for parameter in module.trainable().values():
            parameter.data.add_(0.05 * torch.randn_like(parameter))
        return module

    def test_the_loss_by_hand(self):
        module = self.shaken(noise_weight=0.5)
        original, ask = (
            module.original,
            lambda model, prompts: model.denoise(self.x, self.t, prompts),
        )
        torch.manual_seed(5)
        result = module.erasure_loss(self.batch(module))
        torch.manual_seed(5)
        concept_states = original.encode(BATCH.prompts)
        near = module.perturbed(concept_states)
        far = replace_states(
            concept_states, concept_states.reads_concept(), orthogonal_states(concept_states.tokens)
        )
        erasure = (
            (ask(module.backbone, near) - ask(original, original.encode(BATCH.anchor_prompts)))
            .square()
            .mean()
        )
        retained = (ask(module.backbone, far) - ask(original, far)).square().mean()
        assert torch.allclose(result, erasure + 0.5 * retained)
        assert retained > 0

    def test_without_neighbours_and_beyond_it_is_distillation_of_the_anchor(self):
        module = self.shaken(neighbours=0, beyond=0)
        batch = self.batch(module)
        by_hand = (module.student(batch) - batch.teacher.anchor).square().mean()
        assert torch.allclose(module.erasure_loss(batch), by_hand)

    @pytest.mark.parametrize(("count", "shares"), [(4, {2}), (3, {1, 2}), (1, {0, 1})])
    def test_half_the_batch_is_perturbed(self, count, shares):
        module, prompts = build(), (BATCH.prompts * 2)[:count]
        concept_states = module.original.encode(prompts)

        def perturbed():
            rows = (
                (module.perturbed(concept_states).tokens != concept_states.tokens)
                .flatten(1)
                .any(dim=1)
            )
            return int(rows.sum())

        assert {perturbed() for _ in range(20)} == shares

    @pytest.mark.parametrize(
        ("sampler", "drawn"),
        [("expectation", "direct"), ("direct", "direct"), ("reject", "reject")],
    )
    def test_neighbours_are_drawn_by_the_sampler(self, sampler, drawn):
        module = build(sampler=sampler)
        samplers = []
        module.neighbourhood = SimpleNamespace(
            draw=lambda states, sampler: samplers.append(sampler) or states
        )
        module.perturbed(module.original.encode(BATCH.prompts))
        assert samplers == [drawn]

    def test_the_pooled_vector_is_perturbed_with_its_sentence(self):
        module = RealEra(concepts=CONCEPTS, backbone=TinyXL(), **ARGUMENTS[RealEra])
        module.configure_model()
        prompts = module.original.encode(BATCH.prompts * 2)
        perturbed = module.perturbed(prompts)
        tokens, pooled = (
            (getattr(perturbed, name) != getattr(prompts, name)).flatten(1).any(dim=1)
            for name in ("tokens", "pooled")
        )
        assert torch.equal(tokens, pooled)
        assert tokens.sum() == 2

    def test_without_an_anchor_it_is_the_empty_prompt(self):
        module = build(neighbours=0, beyond=0, closed_form=False, concepts=[Concept("cat")])
        batch = PromptBatch(["a photo of a {}"], ["cat"], [""])

        def predict(prompt):
            states = module.original.encode([prompt])
            return module.original.denoise(self.x[:1], self.t[:1], states)

        by_hand = (predict("a photo of a cat") - predict("")).square().mean()
        assert torch.allclose(
            module.erasure_loss(noisy(module, self.x[:1], self.t[:1], batch)), by_hand
        )

    def test_gradients_reach_the_adapters_alone(self):
        """Section 9 (6)."""
        module = build()
        module.erasure_loss(self.batch(module)).backward()
        assert {n for n, p in module.backbone.named_parameters() if p.grad is not None} == set(
            module.trainable()
        )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"neighbours": -1}, "RealEra needs neighbours of at least 0; found -1"),
        ({"beyond_weight": -1.0}, "RealEra needs beyond_weight of at least 0; found -1.0"),
        ({"ridge": 0.0}, "RealEra needs ridge above 0; found 0.0"),
        ({"noise_weight": -1.0}, "RealEra needs noise_weight of at least 0; found -1.0"),
        ({"min_cosine": 0.95, "max_cosine": 0.9}, "found 0.95 and 0.9"),
    ],
)
def test_arguments_out_of_range(arguments, words):
    with pytest.raises(ErasureError, match=words):
        build(**arguments)


@pytest.mark.slow
def test_it_erases_the_cigarette_of_the_emoji_world_and_keeps_the_rest():
    prompts = ["cigarette", "smoking", "tobacco"]
    retention = LocalNoisePreservation(batch_size=4)
    concepts = [Concept("cigarette", "lollipop", domain=["smoking"])]
    arguments = numbers("realera", latents=TrajectoryBank(trajectories=4, steps=5))
    module = quick_fit(
        RealEra(backbone="emoji-world", concepts=concepts, **arguments), 5, retention
    )
    assert names(module.original.world, drawn(module.original, prompts)) == ["cigarette"] * 3
    assert "cigarette" not in names(module.backbone.world, drawn(module.backbone, prompts))
    assert recognised(module.backbone, KEPT) == recognised_before(module, KEPT) == 1
