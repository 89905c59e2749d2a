"""AdvUnlearn: the contract, its loss by hand, an attack that attacks, the official
traps, the erasure.
"""

import pytest
import torch
from contracts import VARIANT
from noisy import noisy
from recognition import KEPT, recognised
from shipped import numbers

from erasure_lightning.backbones.tiny import TinyBackbone
from erasure_lightning.concepts.concept import Concept, PromptBatch
from erasure_lightning.errors import ErasureError
from erasure_lightning.methods.advunlearn import AdvUnlearn
from erasure_lightning.methods.sage import SAGE
from erasure_lightning.retention.local_noise import LocalNoisePreservation
from erasure_lightning.testing import check_method, quick_fit
from erasure_lightning.training.adversary_kinds import StateAdversary
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
        module.adversary.search = lambda *_: front(module)
        prediction, unconditional = (
            predict(module.original, BATCH.prompts),
            predict(module.original, ["", ""]),
        )
        attacked = module.student(noisy(module, X, T, BATCH))
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


def test_there_is_no_attack_before_its_step():
    module = method(attack_from=1)
    module.adversary.search = lambda *_: pytest.fail("attacked during warm-up")
    module.erasure_loss(noisy(module, X, T, BATCH))


def test_its_numbers_are_those_of_its_search():
    prefix = method(attack_from=7, attack_steps=5, attack_lr=0.5, attack="sign", words=3).adversary
    numbers = (prefix.begin, prefix.steps, prefix.lr, prefix.sign, prefix.words)
    assert numbers == (7, 5, 0.5, True, 3)


def test_another_search_takes_its_place():
    states = StateAdversary()
    assert method(adversary=states).adversary is states


def test_gradients_reach_the_text_encoders_blocks_alone():
    module = method(attack_from=0, attack_steps=1)
    module.erasure_loss(noisy(module, X, T, BATCH)).backward()
    reached = {name for name, p in module.backbone.named_parameters() if p.grad is not None}
    assert reached == set(module.editable())
    assert all(name.startswith("text_encoders.0.") and "embeddings" not in name for name in reached)


def test_blocks_are_the_last_of_the_text_encoder():
    module = method(blocks=1)
    assert set(module.editable()) == set(module.backbone.text_parameters(1))
    assert set(module.editable()) < set(method(blocks=None).editable())  # the control


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
