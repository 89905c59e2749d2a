"""AdvUnlearn: the contract, its loss by hand, an attack that attacks, the official
traps, the erasure.
"""

from types import SimpleNamespace

import pytest
import torch
from contracts import VARIANT
from noisy import noisy
from recognition import KEPT, recognised
from shipped import numbers

from erasure_lightning.backbones.conditioning import CONCEPT, END, START, TEMPLATE
from erasure_lightning.backbones.tiny import TinyBackbone
from erasure_lightning.concepts.concept import Concept, PromptBatch
from erasure_lightning.errors import ErasureError
from erasure_lightning.methods.advunlearn import AdvUnlearn, prepend_words
from erasure_lightning.methods.sage import SAGE
from erasure_lightning.retention.local_noise import LocalNoisePreservation
from erasure_lightning.testing import check_method, quick_fit
from erasure_lightning.training.trajectory_bank import TrajectoryBank

CONCEPTS = [Concept("cat", "dog"), Concept("star", "heart")]
BATCH = PromptBatch(["a photo of a {}", "the {} in a house"], ["cat", "star"], ["", ""], [0, 1])
X, T = torch.linspace(-2, 2, 512).view(2, 4, 8, 8), torch.tensor([100.0, 900.0])

#: What the shipped config gives.
ARGUMENTS = numbers("advunlearn")


def method(cls=AdvUnlearn, **arguments):
    """A method whose text encoder has moved, so that student and original differ."""
    settings = (ARGUMENTS if cls is AdvUnlearn else {}) | arguments
    module = cls(concepts=CONCEPTS, backbone=TinyBackbone(), **settings)
    module.configure_model()
    for parameter in module.editable().values():
        parameter.data.add_(0.02)
    return module


def predict(model, prompts):
    return model.denoise(X, T, model.encode(prompts))


def front(module, count=1):
    """Words of the vocabulary, to stand in front of two sentences."""
    return [module.backbone.word_tables()[0][40 : 40 + 2 * count].view(2, count, -1)]


@pytest.mark.parametrize(
    "arguments",
    [
        {"attack_from": 1, "attack_steps": 1},
        {"attack_from": 0, "attack_steps": 2, "attack": "sign", "words": 2},
    ],
    ids=str,
)
def test_contract(arguments):
    check_method(
        AdvUnlearn,
        **VARIANT,
        latents=TrajectoryBank(trajectories=2, steps=3),
        **(ARGUMENTS | arguments),
    )


def test_contract_on_pure_noise_late_blocks_and_the_world():
    check_method(AdvUnlearn, **(ARGUMENTS | {"attack_from": 1, "attack_steps": 1, "blocks": 1}))


class TestLoss:
    def test_during_warm_up_it_is_esds_at_the_plain_sentence(self):
        module = method(eta=1.5)
        prediction, unconditional = (
            predict(module.original, BATCH.prompts),
            predict(module.original, ["", ""]),
        )
        expected = unconditional - 1.5 * (prediction - unconditional)
        by_hand = (predict(module.backbone, BATCH.prompts) - expected).square().mean()
        assert torch.allclose(module.erasure_loss(noisy(module, X, T, BATCH)), by_hand)

    def test_during_warm_up_it_is_sages_in_noise_space_without_a_self_check(self):
        ours, sages = (
            method(),
            method(SAGE, blocks=None, check_steps=0, erase_space="noise", eta=1.0),
        )
        assert torch.allclose(
            ours.erasure_loss(noisy(ours, X, T, BATCH)),
            sages.erasure_loss(noisy(sages, X, T, BATCH)),
        )

    def test_behind_an_attack_it_is_taken_at_the_attacked_sentence_alone(self):
        module = method(attack_from=0)
        module.attack_prefix = lambda sentences: front(module)
        prediction, unconditional = (
            predict(module.original, BATCH.prompts),
            predict(module.original, ["", ""]),
        )
        attacked = module.prediction(noisy(module, X, T, BATCH), front(module))
        assert not torch.allclose(attacked, predict(module.backbone, BATCH.prompts), atol=1e-4)
        by_hand = (attacked - (2 * unconditional - prediction)).square().mean()
        assert torch.allclose(module.erasure_loss(noisy(module, X, T, BATCH)), by_hand)

    def test_retention_is_nothing_at_the_original(self):
        """The second half of the official loss, which stands in the config."""
        module, term = method(), LocalNoisePreservation(prompts=["a tree", "a car"], batch_size=2)
        term.retained = term.prompts
        assert term.term(module) > 1e-6  # the control: the encoder has moved
        module.backbone = module.original
        assert term.term(module) == 0


class TestAttack:
    def gap(self, module, words):
        return (
            (
                module.prediction(noisy(module, X, T, BATCH), words)
                - predict(module.original, BATCH.prompts)
            )
            .square()
            .mean()
        )

    @pytest.mark.parametrize("attack", ["gradient", "sign"])
    def test_it_brings_the_concept_nearer(self, attack):
        module = method(attack=attack, attack_steps=10, attack_lr=0.02)
        module.noisy_batch = lambda sentences: noisy(module, X, T, sentences)
        adversarial = (torch.manual_seed(0), module.attack_prefix(BATCH))[1]
        module.attack_steps = 0
        start = (torch.manual_seed(0), module.attack_prefix(BATCH))[1]
        assert self.gap(module, adversarial) < 0.95 * self.gap(module, start)

    def test_it_starts_at_words_of_the_vocabulary(self):
        module = method(attack_steps=0, words=2)
        (start,) = module.attack_prefix(BATCH)
        table = module.backbone.word_tables()[0]
        assert start.shape == (2, 2, table.shape[1])
        assert all((table == word).all(dim=1).any() for word in start.flatten(0, 1))

    def test_a_single_step_is_one(self):
        """The official code trains on the words before the last step; and Adam's first step is as
        long as its rate.
        """
        module = method(attack_steps=1, attack_lr=0.03)
        (adversarial,) = (torch.manual_seed(0), module.attack_prefix(BATCH))[1]
        module.attack_steps = 0
        (start,) = (torch.manual_seed(0), module.attack_prefix(BATCH))[1]
        assert torch.allclose((adversarial - start).abs().median(), torch.tensor(0.03), rtol=1e-3)

    def test_gradients_are_not_summed_up(self):
        """The official attack never clears them. Of 1, -1, 1, -1 Adam makes a step; of the sums 1,
        0, 1, 0 three.
        """
        module, signs = method(attack_steps=4, attack_lr=0.01), iter([1.0, -1.0, 1.0, -1.0])
        module.prediction = lambda batch, words: (
            next(signs) * words[0].sum() + torch.zeros(2, 4, 8, 8)
        )
        teacher = SimpleNamespace(concept=torch.full((2, 4, 8, 8), -1e6))
        module.noisy_batch = lambda sentences: SimpleNamespace(teacher=teacher, t=T)
        (adversarial,) = (torch.manual_seed(0), module.attack_prefix(BATCH))[1]
        (start,) = (torch.manual_seed(0), method(attack_steps=0).attack_prefix(BATCH))[1]
        assert 0.005 < (adversarial - start).abs().max() < 0.02

    def test_there_is_none_before_its_step(self):
        module = method(attack_from=1)
        module.attack_prefix = lambda sentences: pytest.fail("attacked during warm-up")
        module.erasure_loss(noisy(module, X, T, BATCH))

    def test_it_leaves_no_gradient_in_the_model(self):
        module = method(attack_steps=2)
        module.attack_prefix(BATCH)
        assert all(p.grad is None for p in module.backbone.parameters())


class TestPrefix:
    def test_a_concept_of_more_tokens_than_words_keeps_them_all(self):
        """The official code drops as many tokens behind its first ones as the attack has words."""
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

    def test_no_room_is_no_room(self):
        (full,) = TinyBackbone().embed(["a photo of a small dog in a house of a star in a tree"])
        assert (full.roles == END).any()
        with pytest.raises(ErasureError, match="needs room for 1 words before a sentence"):
            prepend_words(full, torch.zeros(1, 1, full.embeddings.shape[2]))


def test_gradients_reach_the_text_encoders_blocks_alone():
    module = method(attack_from=0, attack_steps=1)
    module.erasure_loss(noisy(module, X, T, BATCH)).backward()
    reached = {name for name, p in module.backbone.named_parameters() if p.grad is not None}
    assert reached == set(module.editable())
    assert all(name.startswith("text_encoders.0.") and "embeddings" not in name for name in reached)


def test_the_bank_answers_for_the_original_on_both_sides_of_an_attack():
    module = method(attack_from=0, attack_steps=2, latents=TrajectoryBank(trajectories=2, steps=3))
    quick_fit(module, 1)
    module.original.denoise = lambda *_: pytest.fail("predicted what the bank has")
    module.erasure_loss(module.noisy_batch(PromptBatch(["a {}"], ["cat"], ["dog"], [0])))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"words": 0}, "needs words of at least 1; found 0"),
        ({"eta": -0.5}, "needs eta of at least 0; found -0.5"),
        ({"attack_lr": 0.0}, "needs attack_lr above 0; found 0.0"),
    ],
)
def test_numbers_out_of_range_are_refused(arguments, words):
    with pytest.raises(ErasureError, match=words):
        method(**arguments)


@pytest.mark.slow
def test_it_erases_the_cigarette_of_the_emoji_world_and_keeps_the_rest():
    hold = LocalNoisePreservation(
        weight=0.3, batch_size=5, latents=TrajectoryBank(trajectories=8, steps=5)
    )
    bank = TrajectoryBank(trajectories=4, steps=5)
    settings = numbers("advunlearn", attack_from=6, attack_steps=1, lr=4.5e-4)
    module = quick_fit(
        AdvUnlearn(
            backbone="emoji-world", concepts=[Concept("cigarette")], latents=bank, **settings
        ),
        14,
        hold,
    )
    assert recognised(module.backbone, ["cigarette"] * 4) == 0
    assert recognised(module.backbone, KEPT) >= 0.75
