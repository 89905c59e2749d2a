"""STEREO: the contract, its stages, its two targets, the projection."""

from dataclasses import replace

import pytest
import torch
from noisy import noisy
from shipped import numbers

from erasure_lightning.backbones.tiny import TinyBackbone
from erasure_lightning.concepts.concept import Concept, PromptBatch
from erasure_lightning.errors import ErasureError
from erasure_lightning.methods.stereo import STEREO
from erasure_lightning.testing import check_method, edit_of, quick_fit

CONCEPTS = [Concept("cat", "dog"), Concept("star", "heart")]
BATCH = PromptBatch(
    ["a photo of a {}", "the {} in a house"], ["cat", "star"], ["dog", "heart"], [0, 1]
)
X, T = torch.linspace(-2, 2, 512).view(2, 4, 8, 8), torch.tensor([100.0, 900.0])

#: What the shipped config gives.
ARGUMENTS = numbers("stereo")
FEW = {"rounds": 1, "erase_steps": 1, "attack_steps": 2, "attack_lr": 0.1}


def method(**arguments):
    module = STEREO(concepts=CONCEPTS, backbone=TinyBackbone(), **(FEW | arguments))
    module.configure_model()
    return module


def with_words(count, **arguments):
    """A method that has learned words."""
    module = method(rounds=count, **arguments)
    torch.manual_seed(1)
    width = module.backbone.word_tables()[0].shape[1]
    module.inversion.learned = [[torch.randn(2, width)] for _ in range(count)]
    return module


@pytest.mark.filterwarnings("ignore:STEREO erases after")  # some of its fits are of one step
def test_contract():
    check_method(STEREO, steps=6, **(ARGUMENTS | FEW))


@pytest.mark.parametrize("steps", [4, 5])
def test_a_run_that_ends_before_the_last_stage_warns(steps, recwarn):
    quick_fit(method(rounds=2), steps)
    warned = [str(w.message) for w in recwarn if "STEREO" in str(w.message)]
    assert len(warned) == (steps == 4)
    assert all("erases after 4 steps of its search; found a run of 4" in w for w in warned)


class TestStages:
    def fitted(self, steps, **arguments):
        module = method(**({"search_lr": 1e-2, "lr": 1e-2} | arguments))
        seen = []
        loss = module.erasure_loss

        def recorded(batch):
            seen.append((module.stage, len(module.inversion.learned), edit_of(module)))
            module.moments.append(bool(module.trainer.optimizers[0].state))
            return loss(batch)

        module.erasure_loss, module.moments = recorded, []
        quick_fit(module, steps)
        return module, seen

    def test_a_word_is_learned_after_each_round(self):
        """Two concepts: a round of one step for each has two."""
        _, seen = self.fitted(6, rounds=2)
        stages = [(stage, words) for stage, words, _ in seen]
        assert stages == [(0, 0), (0, 0), (1, 1), (1, 1), (2, 2), (2, 2)]

    @pytest.mark.parametrize("rank", [None, 2])
    def test_the_last_stage_begins_at_the_original(self, rank):
        _, seen = self.fitted(4, rank=rank)
        edits = [edit for *_, edit in seen]
        assert equal(edits[2], edits[0])
        assert not equal(edits[1], edits[0])  # the control: the search trains
        assert not equal(edits[3], edits[0])

    def test_the_last_stage_begins_without_the_optimizer_s_moments(self):
        module, _ = self.fitted(4)
        assert module.moments == [False, True, False, True]

    def test_the_search_has_a_rate_of_its_own(self):
        _, seen = self.fitted(4, search_lr=0.0)
        edits = [edit for *_, edit in seen]
        assert equal(edits[1], edits[0])
        assert not equal(edits[3], edits[2])


def equal(a, b):
    return all(torch.equal(a[name], b[name]) for name in b)


def test_without_projection_the_search_is_towards_the_unconditional_prediction():
    """What the official code computes at its scale 2."""
    module = method(parallel=1.0, eta=0.0)
    batch = noisy(module, X, T, BATCH)
    target = module.search_target(batch, torch.zeros(2).long())
    assert torch.allclose(target, batch.teacher.unconditional, atol=1e-6)


def test_eta_goes_past_the_unconditional_prediction():
    module = method(parallel=1.0, eta=0.5)
    batch = noisy(module, X, T, BATCH)
    teacher = batch.teacher
    by_hand = teacher.concept - 1.5 * (teacher.concept - teacher.unconditional)
    target = module.search_target(batch, torch.zeros(2).long())
    assert torch.allclose(target, by_hand, atol=1e-6)


@pytest.mark.parametrize(("stage", "words"), [(0, {0}), (1, {1}), (2, {0, 1, 2})])
def test_a_search_is_at_the_last_word_and_the_last_stage_at_all(stage, words, monkeypatch):
    module = with_words(2)
    monkeypatch.setattr(STEREO, "stage", stage)
    student = set()
    conditioning = module.conditioning

    def recorded(batch, words):
        student.update(words.tolist())
        return conditioning(batch, words)

    batch = noisy(module, X, T, BATCH)
    monkeypatch.setattr(module, "conditioning", recorded)
    monkeypatch.setattr(module, "robust_target", lambda batch: X)
    for _ in range(10):
        module.erasure_loss(batch)
    assert student == words


def test_its_numbers_are_those_of_its_search():
    search = method(rounds=3, attack_steps=5, attack_lr=0.3).inversion
    assert (search.words, search.steps, search.lr) == (3, 5, 0.3)


def test_guidance_is_orthogonal_to_its_prediction():
    module = method()
    batch = noisy(module, X, T, BATCH)
    prediction, batch.teacher.unconditional = torch.randn(2, 2, 4, 8, 8).unbind()
    projected = module.guidance(batch, prediction)
    products = (projected * prediction).flatten(1).sum(dim=1)
    assert products.abs().max() < 1e-3
    module.parallel = 1.0
    whole = module.guidance(batch, prediction)
    assert torch.allclose(whole, prediction - batch.teacher.unconditional)


def test_guidance_of_a_velocity_model_is_that_of_its_noise():
    """With ``v = (eps - s x) / a`` a guidance is that of epsilon divided by ``a``."""
    module = method(parallel=0.3)
    batch = noisy(module, X, T, BATCH)
    noise, batch.teacher.unconditional = torch.randn(2, 2, 4, 8, 8).unbind()
    expected = module.guidance(batch, noise)
    process = module.original.process
    alpha = process.alpha(T).view(-1, 1, 1, 1)
    velocity = replace(process, prediction="velocity")
    module.original.process = velocity

    def native(epsilon):
        return (epsilon - (1 - alpha).sqrt() * X) / alpha.sqrt()

    batch.teacher.unconditional = native(batch.teacher.unconditional)
    result = module.guidance(batch, native(noise))
    assert torch.allclose(result * alpha.sqrt(), expected, rtol=1e-4, atol=1e-4)


def test_the_last_target_is_away_from_all_words_and_towards_the_anchor():
    module = with_words(2, parallel=1.0, anchor=0.5, negative=3.0)
    batch = noisy(module, X, T, BATCH)
    teacher = batch.teacher
    words = [
        module.original.denoise(X, T, module.conditioning(batch, torch.tensor([i, i])))
        for i in range(3)
    ]
    assert not torch.allclose(words[0], words[1], atol=1e-4)
    mean = torch.stack(words).mean(dim=0) - teacher.unconditional
    guided = 0.5 * (teacher.anchor - teacher.unconditional)
    by_hand = teacher.unconditional + guided - 3 * mean
    assert torch.allclose(module.robust_target(batch), by_hand, atol=1e-5)


class TestStyles:
    """The thing of a style's sentence is no part of the style's guidance."""

    BATCH = PromptBatch(["a house, {} style", "a {}"], ["star", "cat"], ["heart", ""], [0, 1])

    def targets(self, anchors):
        concepts = [Concept("star", "heart", kind="style"), Concept("cat")]
        module = STEREO(concepts=concepts, backbone=TinyBackbone(), **(FEW | {"parallel": 1.0}))
        module.configure_model()
        module.conditioning = lambda batch, words: module.backbone.encode(batch.prompts)
        batch = noisy(module, X, T, self.BATCH._replace(anchors=anchors))
        teacher, none = batch.teacher, torch.zeros(2).long()
        plain = teacher.predict(["a house, style", ""])
        return module.search_target(batch, none), module.robust_target(batch), teacher, plain

    def test_guidance_is_from_the_sentence_without_the_style(self):
        search, robust, teacher, plain = self.targets(["heart", ""])
        assert torch.allclose(search, plain, atol=1e-6)
        assert not torch.allclose(plain[0], teacher.unconditional[0], atol=1e-4)
        anchored = plain[0] + teacher.anchor[0] - teacher.concept[0]
        alone = 2 * plain[1] - teacher.concept[1]
        assert torch.allclose(robust, torch.stack((anchored, alone)), atol=1e-5)

    def test_a_style_without_an_anchor_becomes_the_sentence_without_it(self):
        """Another row's anchor brings no guidance to it."""
        _, robust, teacher, plain = self.targets(["", "dog"])
        assert torch.allclose(robust[0], 2 * plain[0] - teacher.concept[0], atol=1e-5)


@pytest.mark.parametrize(("another", "predictions"), [(True, 4), (False, 3)])
def test_a_rank_without_anchors_predicts_with_one_that_has_some(another, predictions):
    """Sharded weights are gathered by all ranks together, or each waits for the others."""
    calls = []
    module = with_words(1, parallel=1.0)
    module.original.any_rank = lambda flag: flag or another
    batch = noisy(module, X, T, BATCH._replace(anchors=["", ""]))
    teacher = batch.teacher
    module.original.denoiser.register_forward_hook(lambda *_: calls.append(1))
    target = module.robust_target(batch)
    assert len(calls) == predictions  # two words, no prompt, and the anchors
    word = module.original.denoise(X, T, module.conditioning(batch, torch.tensor([1, 1])))
    mean = torch.stack((teacher.concept, word)).mean(dim=0) - teacher.unconditional
    assert torch.allclose(target, teacher.unconditional - mean, atol=1e-5)


def test_each_row_has_its_own_word():
    module = with_words(2)
    batch = noisy(module, X, T, BATCH)
    mixed = module.conditioning(batch, torch.tensor([0, 2])).tokens
    plain, second = (module.conditioning(batch, torch.tensor([i, i])).tokens for i in (0, 2))
    assert torch.allclose(mixed[0], plain[0], atol=1e-6)
    assert torch.allclose(mixed[1], second[1], atol=1e-6)
    assert not torch.allclose(plain[1], second[1], atol=1e-3)


def test_numbers_out_of_range_are_refused():
    with pytest.raises(ErasureError, match="STEREO needs rounds of at least 1"):
        method(rounds=0)
