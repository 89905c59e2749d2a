"""Adversaries: their searches, what they return, methods that take them, and resuming."""

from dataclasses import replace

import pytest
import torch
from contracts import VARIANT
from distributed import fits
from noisy import noisy
from torch.optim import SGD, Adam, AdamW

from erasure_lightning.backbones.conditioning import CONCEPT, END, START, TEMPLATE
from erasure_lightning.backbones.tiny import TINY_BACKBONES, TinyBackbone, TinyFlux, TinySD3
from erasure_lightning.concepts.concept import Concept, PromptBatch
from erasure_lightning.errors import ErasureError
from erasure_lightning.methods import METHODS
from erasure_lightning.methods.ant import ANT
from erasure_lightning.methods.ca import CA
from erasure_lightning.methods.eraseflow import EraseFlow
from erasure_lightning.methods.esd import ESD
from erasure_lightning.methods.fmn import FMN
from erasure_lightning.methods.mace import MACE
from erasure_lightning.methods.sage import SAGE
from erasure_lightning.methods.sdd import SDD
from erasure_lightning.methods.trce import TRCE
from erasure_lightning.testing import check_method, quick_fit
from erasure_lightning.training.adversary_kinds import (
    InversionAdversary,
    PrefixAdversary,
    StateAdversary,
    WordAdversary,
)
from erasure_lightning.training.prompt_words import encode_word, prepend_words
from erasure_lightning.training.trajectory_bank import TrajectoryBank

CONCEPTS = [Concept("cat", "dog"), Concept("star", "heart")]
BATCH = PromptBatch(["a photo of a {}", "the {} in a house"], ["cat", "star"], ["", ""], [0, 1])
X, T = torch.linspace(-2, 2, 512).view(2, 4, 8, 8), torch.tensor([100.0, 900.0])

KINDS = {
    WordAdversary: {"lr": 0.02},
    PrefixAdversary: {"lr": 0.02},
    InversionAdversary: {"lr": 0.02, "every": 1, "words": 2},
    StateAdversary: {"radius": 0.3},
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def takes_adversary(name):
    """Whether a method takes one; STEREO has its own, which cannot be another."""
    return name != "STEREO" and getattr(fits.method(name), "takes_adversary", False)


def esd(adversary=None, family=TinyBackbone, moved=True):
    """ESD at latents that a test chooses, with a student unlike its original."""
    module = ESD(concepts=CONCEPTS, backbone=family(), adversary=adversary, lr=1e-2)
    module.configure_model()
    if moved:
        torch.manual_seed(3)
        for parameter in module.editable().values():
            parameter.data.add_(0.2 * torch.randn_like(parameter))
    module.latents.draw = lambda sentences, models: noisy(module, X, T, sentences)
    torch.manual_seed(0)
    return module


def searching(kind, **arguments):
    return kind(**({"begin": 0, "steps": 12, "share": 1.0} | KINDS[kind] | arguments))


def error(module):
    """How far the student's prediction is from the original's for the concept."""
    batch = noisy(module, X, T, BATCH)
    return (module.student(batch) - batch.teacher.concept).square().mean()


@every_kind
def test_a_search_brings_the_concept_nearer(kind):
    module = esd(searching(kind))
    start = esd(searching(kind, steps=1, lr=1e-9))  # where it begins
    assert error(module) < 0.97 * error(start)


@every_kind
@pytest.mark.parametrize("family", TINY_BACKBONES)
def test_every_kind_searches_every_family(kind, family):
    module = esd(searching(kind, steps=2), family)
    x = torch.randn(2, *module.backbone.latent_shape())
    t = module.backbone.process.at(torch.tensor([0.2, 0.8]))
    module.latents.draw = lambda sentences, models: noisy(module, x, t, sentences)
    batch = noisy(module, x, t, BATCH)
    prediction = module.student(batch)
    assert prediction.isfinite().all()
    module.adversary = None
    assert not torch.allclose(prediction, module.student(batch), atol=1e-5)


@pytest.mark.parametrize("kind", [WordAdversary, InversionAdversary])
def test_there_is_no_step_where_nothing_was_erased(kind):
    """The student is its original: what differs is rounding, of which Adam would make steps."""
    module = esd(searching(kind, steps=3), moved=False)
    module.concepts = [Concept("cat"), Concept("star")]  # a token each, so that it starts there
    noise = 1 + 1e-7 * torch.randn(X.shape)
    original = module.backbone.denoise
    module.backbone.denoise = lambda x, t, c: original(x, t, c) * noise
    batch = noisy(module, X, T, BATCH)
    tokens = module.concept_conditioning(batch).tokens
    assert torch.allclose(tokens, module.backbone.encode(BATCH.prompts).tokens, atol=1e-6)


def test_the_best_point_is_no_worse_than_any_other():
    class Recorder(StateAdversary):
        seen = ()

        def errors(self, *arguments):
            values = super().errors(*arguments)
            self.seen = (*self.seen, values)
            return values

    long = {"lr": 0.3, "radius": 3.0, "steps": 6, "begin": 0}  # steps that overshoot
    module = esd(Recorder(best=True, starts=2, **long))
    batch = noisy(module, X, T, BATCH)
    predictions = module.student(batch)
    errors = (predictions - batch.teacher.concept).square().flatten(1).mean(dim=1)
    seen = torch.stack(module.adversary.seen)
    assert len(seen) == 2 * (6 + 1)
    assert torch.allclose(errors, seen.amin(dim=0), rtol=1e-4)
    assert (seen[-1] > seen.amin(dim=0)).any()  # the control: the last is not the best


def test_share_spreads_adversarial_steps():
    third = WordAdversary(begin=2, share=1 / 3)
    assert [step for step in range(11) if third.is_active(step)] == [4, 7, 10]
    assert not any(WordAdversary(begin=0, steps=0).is_active(step) for step in range(9))


def test_searches_have_the_optimizers_and_numbers_of_their_kinds():
    point = [torch.zeros(1, requires_grad=True)]
    words = WordAdversary(lr=0.3).optimizer(point)
    inversion = InversionAdversary(lr=0.2, weight_decay=0.05).optimizer(point)
    states = [StateAdversary(radius=0.4, lr=lr).optimizer(point) for lr in (None, 0.3)]
    assert [type(each) for each in (words, inversion, *states)] == [Adam, AdamW, SGD, SGD]
    rates = [each.defaults["lr"] for each in (words, inversion, *states)]
    assert rates == [0.3, 0.2, 0.1, 0.3]
    assert inversion.defaults["weight_decay"] == 0.05


def test_directions_are_gradients_or_their_signs():
    gradient = torch.tensor([-3.0, 0.0, 0.5])
    signs = torch.tensor([-1.0, 0.0, 1.0])
    assert torch.equal(WordAdversary().direction(gradient), gradient)
    assert torch.equal(PrefixAdversary().direction(gradient), gradient)
    assert torch.equal(PrefixAdversary(sign=True).direction(gradient), signs)
    assert torch.equal(StateAdversary().direction(gradient), signs)


def test_searches_draw_at_the_sentences_and_times_of_the_loss():
    """SDD's trajectories name all concepts, TRCE trains early steps, ANT pairs of steps."""
    arguments = {"concepts": CONCEPTS, "backbone": TinyBackbone()}
    bank = {"latents": TrajectoryBank(trajectories=2, steps=4, guidance=1.0)}
    sdd, trce, ant = (method(**arguments, **bank) for method in (SDD, TRCE, ANT))
    for module in (sdd, trce, ant):
        module.configure_model()
    assert sdd.adversary_models().draw(BATCH).sentences is BATCH
    times = torch.cat([trce.adversary_models().draw(BATCH).t for _ in range(20)])
    assert set(times.tolist()) == set(trce.backbone.sampler(4).times[:2].tolist())
    assert len(ant.noisy_batch(BATCH)) == 2 * len(ant.adversary_models().draw(BATCH)) == 4


@pytest.mark.parametrize(
    ("kind", "draws"), [(WordAdversary, 0), (StateAdversary, 0), (PrefixAdversary, 3)]
)
def test_some_kinds_search_at_fresh_latents_in_each_step(kind, draws):
    module = esd(searching(kind, steps=3))
    searched = models(module)
    batch = noisy(module, X, T, BATCH)
    drawn = []
    draw = lambda sentences: drawn.append(sentences) or batch  # noqa: E731
    module.adversary.search(batch, replace(searched, draw=draw))
    assert drawn == [BATCH] * draws


class TestWords:
    @pytest.mark.parametrize(
        ("where", "roles"), [("template", {TEMPLATE}), ("all", {TEMPLATE, CONCEPT})]
    )
    def test_they_vary_where_they_may(self, where, roles):
        module = esd(searching(WordAdversary, where=where))
        seen = []
        encode = module.backbone.contextualize
        module.backbone.contextualize = lambda prompts: (seen.append(prompts), encode(prompts))[1]
        module.student(noisy(module, X, T, BATCH))
        (plain,), (changed_words,) = module.backbone.embed(BATCH.prompts), seen[-1]
        changed = (plain.embeddings != changed_words.embeddings).any(dim=2)
        assert {*plain.roles[changed].tolist()} == roles


class TestPrefix:
    def test_it_starts_at_words_of_the_vocabulary(self):
        module = esd(searching(PrefixAdversary, steps=1, lr=1e-9, words=2))
        (result,) = module.adversary.search(noisy(module, X, T, BATCH), models(module))
        table = module.backbone.word_tables()[0]
        assert result.shape == (2, 2, table.shape[1])
        distances = (table - result.flatten(0, 1).unsqueeze(1)).abs().amax(dim=2)
        assert distances.amin(dim=1).max() < 1e-7

    def test_gradients_are_not_summed_up(self):
        """The official attack never clears them. Of 1, -1, 1, -1 Adam makes a step; of the sums 1,
        0, 1, 0 three.
        """
        module = esd(searching(PrefixAdversary, steps=4, lr=0.01))
        batch = noisy(module, X, T, BATCH)
        signs = iter([1.0, -1.0, 1.0, -1.0])
        attacked = replace(
            models(module),
            predict=lambda batch, conditioning: torch.ones_like(X),
            error=lambda *_: next(signs) * point[0].sum(),
        )
        point = module.adversary.start(BATCH, attacked, 0)
        start = point[0].clone()
        module.adversary.start = lambda *_: point
        (result,) = module.adversary.search(batch, attacked)
        assert 0.005 < (result - start).abs().max() < 0.02

    def test_a_concept_of_more_tokens_than_words_keeps_them_all(self):
        """AdvUnlearn's code drops as many tokens behind its first ones as the attack has words."""
        model = TinyBackbone()
        (plain,) = model.embed(PromptBatch(["a {}"], ["zebra"], [""]).prompts)
        assert plain.positions(CONCEPT).sum() == 5
        put = prepend_words(plain, torch.zeros(1, 2, plain.embeddings.shape[2]))
        assert torch.equal(put.ids[0, 3:], plain.ids[0, 1:-2])
        assert torch.equal(put.embeddings[0, 3:], plain.embeddings[0, 1:-2])
        assert torch.equal(put.roles[0, 3:], plain.roles[0, 1:-2])
        assert put.roles[0, :4].tolist() == [START, TEMPLATE, TEMPLATE, TEMPLATE]
        assert put.ids.shape == plain.ids.shape
        assert put.ends.item() == plain.ends.item() + 2

    def test_words_of_the_table_read_as_they_would_in_a_sentence(self):
        model = TinyBackbone()
        (plain,), (expected,) = model.embed(["a cat"]), model.embed(["dog a cat"])
        put = prepend_words(plain, expected.embeddings[:, 1:2])
        assert torch.allclose(
            model.contextualize([put]).tokens, model.contextualize([expected]).tokens, atol=1e-6
        )

    def test_they_are_before_the_first_word_of_an_encoder_without_a_start_token(self):
        *_, plain = TinyFlux().embed(PromptBatch(["{}"], ["zebra"], [""]).prompts)
        put = prepend_words(plain, torch.zeros(1, 2, plain.embeddings.shape[2]))
        assert torch.equal(put.embeddings[0, 2:], plain.embeddings[0, :-2])
        assert put.roles[0, :3].tolist() == [TEMPLATE, TEMPLATE, CONCEPT]

    def test_no_room_is_no_room(self):
        (full,) = TinyBackbone().embed(["a photo of a small dog in a house of a star in a tree"])
        assert (full.roles == END).any()
        with pytest.raises(ErasureError, match="needs room for 1 tokens before each prompt"):
            prepend_words(full, torch.zeros(1, 1, full.embeddings.shape[2]))


def models(module):
    """The models that a module shows its adversary."""
    shown = []
    conditioning, module.adversary.conditioning = (
        module.adversary.conditioning,
        lambda batch, step, seen: (shown.append(seen), module.backbone.encode(batch.prompts))[1],
    )
    module.student(noisy(module, X, T, BATCH))
    module.adversary.conditioning = conditioning
    return shown[0]


class TestInversion:
    def test_words_are_renewed_and_the_oldest_dropped(self):
        module = esd(searching(InversionAdversary, steps=2, every=3, words=2, begin=1))
        adversary, batch, shown = module.adversary, noisy(module, X, T, BATCH), models(module)
        counts = []
        for step in range(8):
            adversary.conditioning(batch, step, shown)
            adversary.conditioning(batch, step, shown)  # of a second batch that is accumulated
            counts.append(len(adversary.learned))
        assert counts == [0, 1, 1, 1, 2, 2, 2, 2]
        assert adversary._searches == 3

    def test_another_fit_learns_words_of_its_own(self):
        adversary = InversionAdversary(begin=0, steps=1, share=1.0)
        learned = []
        for concepts in ([Concept("cat")], CONCEPTS):
            quick_fit(ESD(concepts=concepts, backbone=TinyBackbone(), adversary=adversary), 1)
            learned.append([[len(rows) for rows in words] for words in adversary.learned])
        assert learned == [[[1]], [[2]]]  # one word of each concept

    @pytest.mark.parametrize(("count", "sentences"), [(1, 2), (2, 2), (3, 4)])
    def test_a_search_has_as_many_sentences_of_each_concept(self, count, sentences):
        module = esd(searching(InversionAdversary, steps=1))
        counts = []
        searched = replace(models(module), sentences=lambda n, number: counts.append(n) or BATCH)
        module.adversary.learn(count, 0, searched)
        assert counts == [sentences]

    def test_each_sentence_has_the_word_of_its_concept(self):
        module = esd(searching(InversionAdversary, steps=2))
        module.student(noisy(module, X, T, BATCH))
        ((words,),) = module.adversary.learned
        expected = encode_word(module.backbone, BATCH.templates, [words])
        states = module.adversary.encode_learned(BATCH, torch.zeros(2).long(), module.backbone)
        assert torch.allclose(states.tokens, expected.tokens)
        swapped = encode_word(module.backbone, BATCH.templates, [words.flip(0)])
        assert not torch.allclose(states.tokens, swapped.tokens, atol=1e-4)


def test_states_stay_in_their_ball():
    module = esd(searching(StateAdversary, radius=0.05, lr=0.05))
    plain = module.backbone.encode(BATCH.prompts).tokens
    states = module.concept_conditioning(noisy(module, X, T, BATCH)).tokens
    change = (states - plain).abs().max()
    assert 0.04 < change <= 0.05 + 1e-6
    assert states.max() <= plain.max()


def test_channels_and_rows_that_no_encoder_fills_stay_zero():
    student = TinySD3(t5=False)
    plain = student.encode(BATCH.prompts)
    adversary = StateAdversary(radius=0.3)
    point = [torch.full_like(each, 0.3) for each in (plain.tokens, plain.pooled)]
    moved = adversary.encode(BATCH, point, student)
    empty = plain.tokens == 0
    assert empty.all(dim=2).any()
    assert empty[:, : plain.segments[0].stop].any()
    assert not moved.tokens[empty].any()
    assert (moved.tokens != plain.tokens)[~empty].float().mean() > 0.9


def test_states_begin_anywhere_in_their_ball():
    module = esd(searching(StateAdversary, radius=0.05))
    (start,) = module.adversary.start(BATCH, models(module), 0)
    assert start.min() == pytest.approx(-0.05, rel=0.05)
    assert start.max() == pytest.approx(0.05, rel=0.05)


def test_states_stay_in_the_range_of_their_own_sentence():
    module = esd(searching(StateAdversary))
    plain = module.backbone.encode(BATCH.prompts).tokens
    low, high = (each.view(2, 1, 1) for each in plain.flatten(1).aminmax(dim=1))
    assert high[0] != high[1]  # the control
    for far, bound in ((-1e3, low), (1e3, high)):
        states = module.adversary.encode(BATCH, [torch.full_like(plain, far)], module.backbone)
        assert torch.equal(states.tokens, bound.expand_as(plain))


@pytest.mark.parametrize("kind", [PrefixAdversary, InversionAdversary])
def test_a_fit_against_an_adversary_keeps_the_promises_of_every_method(kind):
    check_method(
        ESD,
        **VARIANT,
        steps=4,
        adversary=searching(kind, steps=2, begin=1),
        latents=TrajectoryBank(trajectories=2, steps=3),
        lr=1e-2,
    )


def test_a_method_with_an_own_student_passes_its_search_through_it():
    module = CA(concepts=CONCEPTS, backbone=TinyBackbone(), adversary=searching(StateAdversary))
    module.configure_model()
    prediction = module.student(noisy(module, X, T, BATCH))
    module.adversary = None
    assert not torch.allclose(prediction, module.student(noisy(module, X, T, BATCH)), atol=1e-6)


class CountedAdversary(StateAdversary):
    """Counts the batches whose conditioning it replaced."""

    count = 0

    def conditioning(self, *arguments):
        self.count += 1
        return super().conditioning(*arguments)


@pytest.mark.parametrize("name", [name for name in METHODS if takes_adversary(name)])
def test_methods_that_take_an_adversary_train_at_its_conditioning(name):
    """Those that ignored one would train as without it."""
    adversary = CountedAdversary(begin=0, steps=1)
    extra = {"erase_space": "noise"} if name == "SAGE" else {}
    quick_fit(fits.build(name, TinyBackbone(), adversary=adversary, **extra), 2)
    assert adversary.count > 0


@pytest.mark.parametrize(
    ("method", "arguments", "words"),
    [
        (MACE, {}, "MACE takes no adversary"),
        (FMN, {}, "FMN takes no adversary"),
        (EraseFlow, {}, "EraseFlow takes no adversary"),
        (SAGE, {}, "SAGE with an adversary needs erase_space 'noise'"),
        (ESD, {"erase_from": "anchor"}, "ESD with erase_from 'anchor' takes no adversary"),
    ],
)
def test_methods_without_a_loss_on_predictions_for_the_concept_refuse_one(method, arguments, words):
    with pytest.raises(ErasureError, match=words):
        method(concepts=CONCEPTS, backbone=TinyBackbone(), adversary=WordAdversary(), **arguments)


@pytest.mark.parametrize(
    ("kind", "arguments", "words"),
    [
        (WordAdversary, {"share": 0.0}, "WordAdversary needs share above 0"),
        (PrefixAdversary, {"words": 0}, "PrefixAdversary needs words of at least 1"),
        (InversionAdversary, {"every": 0}, "InversionAdversary needs every of at least 1"),
        (StateAdversary, {"radius": -1.0}, "StateAdversary needs radius above 0"),
    ],
)
def test_numbers_out_of_range_are_refused(kind, arguments, words):
    with pytest.raises(ErasureError, match=words):
        kind(**arguments)
