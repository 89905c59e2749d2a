"""SAGE: the contract, its losses on cases with known answers, and the erasure itself,
with controls.
"""

import copy
from dataclasses import replace

import pytest
import torch
from contracts import VARIANT
from noisy import noisy
from recognition import KEPT, recognised, recognised_before
from shipped import numbers
from trivial import Idle

from erasure_lightning.backbones.conditioning import TEMPLATE
from erasure_lightning.backbones.tiny import TinyBackbone, TinyXL
from erasure_lightning.concepts.concept import Concept, PromptBatch
from erasure_lightning.diffusion.sampling import sample_images
from erasure_lightning.edits.applied import apply_edit
from erasure_lightning.errors import ErasureError
from erasure_lightning.methods.sage import SAGE
from erasure_lightning.retention.global_alignment import GlobalSemanticAlignment
from erasure_lightning.retention.local_states import LocalStatePreservation
from erasure_lightning.retention.unconditional_drift import UnconditionalDrift
from erasure_lightning.testing import check_method, quick_fit
from erasure_lightning.training.adversary_kinds import StateAdversary
from erasure_lightning.training.prompt_states import gradient_ascent, with_template_of
from erasure_lightning.training.trajectory_bank import TrajectoryBank

BATCH = PromptBatch(
    ["a photo of a {}", "the {} in a house"], ["cat", "star"], ["dog", "heart"], [0, 1]
)
LATENTS = torch.zeros(2, 4, 8, 8), torch.tensor([100.0, 900.0])

#: What the shipped config gives, with few words among which those of a domain are sought.
ARGUMENTS = numbers("sage", domain_candidates=4)


def sage(**arguments):
    module = SAGE(
        concepts=[Concept("cat", "dog"), Concept("star", "heart")],
        backbone=TinyBackbone(),
        **(ARGUMENTS | arguments),
    )
    module.configure_model()
    return module


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"domain_similarity": 0.5},
        {"check": "margin", "blocks": None},
        {"check": "outside_in", "target_template": "found"},
        {"check_steps": 0, "eta": 0.5},
        {"erase_space": "noise", "eta": 1.0},
        {"train": "cross_attention", "erase_space": "noise"},
        {"train": "text_encoder+joint_attention", "denoiser_lr": 1e-3},
    ],
    ids=str,
)
def test_contract(arguments):
    unmined = {"domain_similarity": None, "check_from": 1, "warmup": 1}
    variant = VARIANT if arguments else {}
    check_method(SAGE, **(ARGUMENTS | unmined | variant | arguments))


class TestSelfCheck:
    """Section 9 (5)."""

    def test_at_the_original_it_stays_at_the_template(self):
        module = sage()
        plain = module.backbone.embed(BATCH.prompts)
        concept = module.original.summarize(plain)
        assert module.check_loss(module.backbone.summarize(plain), concept).abs().max() < 1e-6
        (result,) = module.self_check(plain, *LATENTS)
        assert torch.equal(result.embeddings, plain[0].embeddings)
        quick_fit(
            other := sage(check_steps=0, lr=1e-2, warmup=1), 5
        )  # the control: a trained encoder
        other.check_steps = module.check_steps
        (result,) = other.self_check(other.backbone.embed(BATCH.prompts), *LATENTS)
        assert not torch.equal(result.embeddings, plain[0].embeddings)

    def test_with_a_domain_half_of_the_searches_begin_at_its_words(self):
        module = sage()
        sentences = PromptBatch(["a {}"] * 64, ["cat"] * 32 + ["star"] * 32, ["dog"] * 64)
        assert module.check_starts(sentences) == sentences  # the control
        module.domains = {"cat": ["kitten", "puss"], "star": []}
        torch.manual_seed(0)
        starts = module.check_starts(sentences).concepts
        assert set(starts[:32]) == {"cat", "kitten", "puss"}
        assert 8 < starts[:32].count("cat") < 24
        assert starts[32:] == ["star"] * 32

    def test_rows_that_are_untouched_stay_beside_rows_that_are_not(self):
        """As a batch of few among many concepts does."""
        score = lambda prompts: -prompts[0].embeddings.square().sum(dim=(1, 2))  # noqa: E731
        (plain,) = sage().backbone.embed(BATCH.prompts)
        words = plain.embeddings.clone()
        words[0] = 0.0
        start = replace(plain, embeddings=words)
        (result,) = gradient_ascent((start,), score, (torch.tensor(0.1),), 5)
        assert torch.equal(result.embeddings[0], start.embeddings[0])
        assert (score((result,)) > score((start,)))[1]

    def test_the_best_point_is_returned_and_not_the_last(self):
        (plain,) = sage().backbone.embed(BATCH.prompts)
        words = plain.positions(TEMPLATE).unsqueeze(2)
        score = lambda prompts: -(prompts[0].embeddings * words).square().sum(dim=(1, 2))  # noqa: E731
        scores = []

        def seen(prompts):
            scores.append(score(prompts).detach())
            return score(prompts)

        (result,) = gradient_ascent((plain,), seen, (torch.tensor(3.0),), 6)
        assert len(scores) == 7
        assert torch.allclose(score((result,)), torch.stack(scores).amax(dim=0))
        assert (torch.stack(scores)[-1] < torch.stack(scores).amax(dim=0)).any()  # the control

    def test_a_step_is_along_the_gradient_on_the_template(self):
        (plain,) = sage().backbone.embed(BATCH.prompts)
        slope = torch.randn_like(plain.embeddings)
        score = lambda prompts: (prompts[0].embeddings * slope).sum(dim=(1, 2))  # noqa: E731
        (result,) = gradient_ascent((plain,), score, (torch.tensor(0.3),), 1)
        steps = slope * plain.positions(TEMPLATE).unsqueeze(2)
        longest = steps.norm(dim=2).amax(dim=1).view(-1, 1, 1)
        shift = result.embeddings - plain.embeddings
        assert torch.allclose(shift, 0.3 * steps / longest, atol=1e-5)

    def test_after_the_plain_prompt_is_erased_it_finds_the_concept_again(self):
        module = quick_fit(sage(check_steps=0, lr=3e-3, warmup=1), 40)
        module.check_steps, module.check_size = 10, 0.1
        plain = module.backbone.embed(BATCH.prompts)
        concept = module.original.summarize(plain)
        result = module.self_check(plain, noisy(module, *LATENTS, BATCH))
        before, after = (
            module.check_loss(module.backbone.summarize(p), concept) for p in (plain, result)
        )
        assert (before > 0.01).all()  # the control: the plain prompt really was erased
        assert (after < before).all()

    @pytest.mark.parametrize("check", ["cosine", "margin", "outside_in"])
    def test_only_the_template_moves(self, check):
        module = quick_fit(sage(check=check, check_steps=0, lr=1e-2, warmup=1), 5)
        module.check_steps = 3
        plain, anchor = (
            module.backbone.embed(BATCH.prompts),
            module.backbone.embed(BATCH.anchor_prompts),
        )
        (result,) = module.self_check(plain, noisy(module, *LATENTS, BATCH), anchor)
        moved = (result.embeddings != plain[0].embeddings).any(dim=2)
        assert moved.any()
        assert not (moved & ~plain[0].positions(TEMPLATE)).any()

    def test_the_anchor_gets_the_template_of_the_self_check(self):
        module = sage()
        (plain,), (anchor,) = (
            module.backbone.embed(BATCH.prompts),
            module.backbone.embed(BATCH.anchor_prompts),
        )
        result = replace(plain, embeddings=plain.embeddings + 1)
        there = with_template_of(anchor, result)
        assert torch.equal(
            there.embeddings[anchor.positions(TEMPLATE)],
            result.embeddings[result.positions(TEMPLATE)],
        )
        assert torch.equal(
            there.embeddings[~anchor.positions(TEMPLATE)],
            anchor.embeddings[~anchor.positions(TEMPLATE)],
        )

    def test_what_it_minimises_by_hand(self):
        module = sage()
        meaning, concept, anchor = torch.randn(3, 4, 8)
        near, far = (torch.cosine_similarity(meaning, each) for each in (concept, anchor))
        assert torch.allclose(module.check_loss(meaning, concept), 1 - near)
        assert torch.allclose(module.check_loss(meaning, concept, anchor), 1 - near + far)
        module.check = "outside_in"
        by_hand = (meaning - concept).square().mean(dim=1)
        assert torch.allclose(module.check_loss(meaning, concept), by_hand)

    def test_a_step_is_as_long_as_a_share_of_the_median_word(self, monkeypatch):
        module, numbers = sage(check_size=0.2, check_steps=5), []
        monkeypatch.setattr(
            "erasure_lightning.methods.sage.gradient_ascent",
            lambda start, score, sizes, steps: numbers.append((sizes, steps)) or start,
        )
        module.self_check(module.backbone.embed(BATCH.prompts), *LATENTS)
        (((size,), steps),) = numbers
        (table,) = module.backbone.word_tables()
        assert torch.allclose(size, 0.2 * table.norm(dim=1).median())
        assert steps == 5

    @pytest.mark.parametrize(("begin", "searches"), [(0, 1), (1, 0)])
    def test_it_begins_at_its_step(self, begin, searches, monkeypatch):
        module, begun = sage(check_from=begin), []
        monkeypatch.setattr(module, "self_check", lambda start, *_: begun.append(0) or start)
        module.erasure_loss(noisy(module, *LATENTS, BATCH))
        assert len(begun) == searches

    def test_words_are_mined_with_its_numbers(self, monkeypatch):
        settings = []
        monkeypatch.setattr(
            "erasure_lightning.methods.sage.domain_words",
            lambda original, concepts, *numbers: settings.append(numbers) or [["kitten"], []],
        )
        module = sage(domain_similarity=0.6, domain_candidates=7, vocabulary=None)
        module.on_train_start()
        assert settings == [(0.6, 7, [])]
        assert module.domains == {"cat": ["kitten"], "star": []}


class TestBothPlaces:
    def test_the_loss_is_that_of_the_encoder_plus_that_of_the_denoiser(self):
        both = {"train": "text_encoder+joint_attention", "check_steps": 0}
        module = sage(adversary=StateAdversary(begin=0, steps=2, radius=0.3), **both)
        batch = noisy(module, *LATENTS, BATCH)
        torch.manual_seed(0)
        loss = module.erasure_loss(batch)
        alone = sage(check_steps=0).erasure_loss(batch)
        torch.manual_seed(0)
        attacked = (module.student(batch) - batch.teacher.anchor).square().mean()
        assert torch.allclose(loss, alone + attacked, rtol=1e-4)
        assert not torch.allclose(alone, loss, rtol=1e-3)  # the control

    def test_each_has_its_own_rate(self):
        module = sage(train="text_encoder+joint_attention", lr=1e-2, denoiser_lr=1e-3)
        rates = module.learning_rates()
        of_denoiser = {name for name, rate in rates.items() if rate == 1e-3}
        assert of_denoiser == {name for name in rates if name.startswith("denoiser.")}
        assert {rates[name] for name in rates.keys() - of_denoiser} == {1e-2}


class TestReduction:
    """Section 9 (7), and the text loss by hand."""

    def test_without_check_in_noise_space_it_is_the_negative_guidance_of_advunlearn(self):
        module = sage(check_steps=0, erase_space="noise", eta=1.0)
        x, t = torch.randn(2, 4, 8, 8), torch.tensor([100.0, 900.0])
        unanchored = PromptBatch(BATCH.templates, BATCH.concepts, ["", ""], [0, 1])
        for parameter in module.editable().values():
            parameter.data.add_(0.01)
        ask = lambda model, prompts: model.denoise(x, t, model.encode(prompts))  # noqa: E731
        uncond, concept = ask(module.original, ["", ""]), ask(module.original, BATCH.prompts)
        by_hand = (
            (ask(module.backbone, BATCH.prompts) - (uncond - (concept - uncond))).square().mean()
        )
        assert torch.allclose(module.erasure_loss(noisy(module, x, t, unanchored)), by_hand)

    def test_text_space_compares_span_and_tail(self):
        module = sage(check_steps=0)
        batch = PromptBatch(["a {} car"], ["cat"], ["dog"], [0])
        now = module.backbone.encode(batch.prompts).tokens[0]
        expected = module.original.encode(batch.anchor_prompts).tokens[0]
        gap = (now - expected).square().mean(dim=1)
        assert torch.allclose(
            module.erasure_loss(noisy(module, *LATENTS, batch)), gap[2] + gap[3:].mean()
        )

    @pytest.mark.parametrize("family", [TinyBackbone, TinyXL])
    def test_eta_in_text_space_goes_past_the_anchor(self, family):
        """Of the pooled vector too, where the family has one."""
        concepts, eta = [Concept("cat", "dog")], 0.5
        settings = ARGUMENTS | {"check_steps": 0, "eta": eta}
        module = SAGE(concepts=concepts, backbone=family(), **settings)
        module.configure_model()
        batch = PromptBatch(["a {} car"], ["cat"], ["dog"], [0])
        concept, anchor = (module.original.encode(p) for p in (batch.prompts, batch.anchor_prompts))
        # The student is the original: its distance from the target is ``(1 + eta) (c - a)``.
        errors = ((1 + eta) * (concept.tokens - anchor.tokens)[0]).square().mean(dim=1)
        by_hand = errors[2] + errors[3:].mean()
        if concept.pooled is not None:
            by_hand = by_hand + ((1 + eta) * (concept.pooled - anchor.pooled)).square().mean()
        x = torch.zeros(1, *module.backbone.latent_shape())
        loss = module.erasure_loss(noisy(module, x, LATENTS[1][:1], batch))
        assert torch.allclose(loss, by_hand, rtol=1e-4)


def test_blocks_are_the_last_of_the_text_encoder():
    module = sage(blocks=1)
    assert set(module.editable()) == set(module.backbone.text_parameters(1))
    assert set(module.editable()) < set(sage(blocks=None).editable())  # the control


def test_gradients_reach_the_text_encoder_alone():
    """Section 9 (6)."""
    module = sage(check_from=0, blocks=None)
    module.erasure_loss(noisy(module, *LATENTS, BATCH)).backward()
    reached = {n for n, p in module.backbone.named_parameters() if p.grad is not None}
    assert reached == set(module.editable())
    assert all(p.grad is None for n, p in module.original.named_parameters() if "layers" in n)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"train": "cross_attention"}, "needs erase_space 'noise'"),
        ({"check_steps": -1}, "of at least 0; found -1"),
        ({"check_from": -1}, "check_from of at least 0; found -1"),
        ({"check_size": -0.1}, "check_size above 0; found -0.1"),
    ],
)
def test_arguments_that_do_not_go_together(arguments, words):
    with pytest.raises(ErasureError, match=words):
        sage(**arguments)


def test_a_sentence_cut_short_is_refused():
    module = sage()
    (plain,) = module.backbone.embed(BATCH.prompts)
    longer = module.backbone.embed(["a photo of a small big cat", "the star"])[0]
    with pytest.raises(ErasureError, match="found one cut short. Shorten"):
        with_template_of(plain, longer)


def test_the_trained_encoder_transfers_to_another_pipeline(tmp_path):
    """The concept's tokens move the same way in a pipeline with the same text encoder and another
    UNet.
    """
    module = quick_fit(sage(), 10)
    module.save_edit(tmp_path / "edit.safetensors")
    other = TinyBackbone()
    other.denoiser = TinyBackbone(seed=9).denoiser
    pipeline = other.to_pipeline()
    before = sample_images(copy.deepcopy(other), ["a cat"], [0], steps=2, guidance=2.0)
    apply_edit(tmp_path, pipeline)
    assert torch.equal(other.encode(["a cat"]).tokens, module.backbone.encode(["a cat"]).tokens)
    assert not torch.allclose(
        sample_images(other, ["a cat"], [0], steps=2, guidance=2.0), before, atol=1e-3
    )


WORLD = [Concept("cigarette", "lollipop")]


def moves(module):
    """How far the concept, its domain and the rest went from the original, and the concept from its
    anchor: 1 - cos.
    """

    def gap(prompts, expected):
        now, then = (
            m.summarize(m.embed(p))
            for m, p in ((module.backbone, prompts), (module.original, expected))
        )
        return (1 - torch.cosine_similarity(now, then)).mean().item()

    concept_prompts, rest = (
        ["a cigarette", "an emoji of a cigarette"],
        ["a dog", "a pizza", "a guitar", "a rocket"],
    )
    anchor_prompts = ["a lollipop", "an emoji of a lollipop"]
    return {
        "concept": gap(concept_prompts, concept_prompts),
        "anchor": gap(concept_prompts, anchor_prompts),
        "rest": gap(rest, rest),
    }


@pytest.mark.slow
def test_it_erases_the_cigarette_of_the_emoji_world_and_keeps_the_rest():
    retention = (
        GlobalSemanticAlignment(800, batch_size=8),
        LocalStatePreservation(1.5, batch_size=4),
        UnconditionalDrift(3),
    )
    bank = TrajectoryBank(trajectories=4, steps=5)
    few = {"domain_candidates": 32}  # the domain is the same with the config's 300
    arguments = numbers("sage", check_steps=2, check_from=3, lr=1.2e-3, latents=bank, **few)
    module = quick_fit(SAGE(backbone="emoji-world", concepts=WORLD, **arguments), 15, *retention)
    assert module.domains["cigarette"][0] == "smoke"
    after = moves(module)
    assert after["concept"] > 0.4
    assert after["anchor"] < 0.2
    assert after["rest"] < 0.05
    assert recognised_before(module, ["cigarette"] * 4) == 1
    assert recognised(module.backbone, ["cigarette"] * 4) == 0
    assert recognised(module.backbone, KEPT) == recognised_before(module, KEPT) == 1


@pytest.mark.slow
def test_the_same_measure_fails_on_a_method_that_does_nothing():
    module = quick_fit(Idle(backbone="emoji-world", concepts=WORLD), 1)
    after = moves(module)
    assert after["concept"] < 1e-6
    assert after["anchor"] > 0.4
    assert recognised(module.backbone, ["cigarette"] * 4) == 1
