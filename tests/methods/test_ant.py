"""ANT: the contract, four terms by hand, stages, the drift's gradients, masks, the erasure."""

import pytest
import torch
from contracts import VARIANT
from noisy import noisy
from recognition import KEPT, recognised, recognised_before
from shipped import numbers

from erasure_lightning.backbones.tiny import TinyBackbone
from erasure_lightning.concepts.concept import Concept, PromptBatch
from erasure_lightning.errors import ErasureError
from erasure_lightning.methods.ant import ANT
from erasure_lightning.testing import check_method, edit_of, quick_fit
from erasure_lightning.training.trajectory_bank import TrajectoryBank

CONCEPTS = [Concept("cat", "dog"), Concept("star", "heart")]
BATCH = PromptBatch(
    ["a photo of a {}", "the {} in a house", "a {}"],
    ["cat", "star", "cat"],
    ["dog", "heart", "dog"],
    [0, 1, 0],
)
X, T = torch.linspace(-2, 2, 768).view(3, 4, 8, 8), torch.tensor([100.0, 900.0, 500.0])
LATE, EARLY = [0, 2], [1]

#: A rate that moves the tiny model.
ARGUMENTS = {"lr": 3e-4, "schedule": "cosine"}


def bank(**arguments):
    return TrajectoryBank(**({"trajectories": 2, "steps": 4} | arguments))


def ant(moved=0.01, **arguments):
    module = ANT(concepts=CONCEPTS, backbone=TinyBackbone(), **(ARGUMENTS | arguments))
    module.configure_model()
    for parameter in module.editable().values():
        parameter.data.add_(moved)
    return module


def predict(model, prompts, rows):
    return model.denoise(X[rows], T[rows], model.encode([prompts[i] for i in rows]))


def mse(a, b):
    return (a - b).square().mean()


def gradients(module, rows=slice(None)):
    batch = PromptBatch(*(field[rows] for field in BATCH))
    parameters = list(module.trainable().values())
    result = torch.autograd.grad(
        module.erasure_loss(noisy(module, X[rows], T[rows], batch)),
        parameters,
        materialize_grads=True,
    )
    return torch.cat([gradient.flatten() for gradient in result])


def moved(module, question):
    """How far the predictions went from the original's, at each step of the bank's trajectories."""
    held, t, sentences = (
        module.latents._held,
        module.latents._held["t"],
        module.latents.sentences.prompts,
    )
    model, prompts = module.backbone, sentences if question == "concept" else [""] * len(sentences)
    read = model.encode(prompts)
    return [
        mse(model.denoise(held["x"][:, i], t[:, i], read), held[question][:, i]).item()
        for i in range(4)
    ]


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"share": 1.0, "train": "x"},
        {"latents": bank(student=True, refresh=2), "alpha": 0.0, "drift": 0.0},
    ],
    ids=["masked", "cross-attention", "student"],
)
def test_contract(arguments):
    check_method(ANT, **VARIANT, **(ARGUMENTS | {"latents": bank(), "maps": 2} | arguments))


def test_contract_on_pure_noise_and_the_world():
    check_method(ANT, maps=1, **ARGUMENTS)


class TestLoss:
    def test_four_terms_by_hand(self):
        module, unconditional = ant(alpha=0.7, drift=0.3), [""] * 3
        now, then, concept = module.backbone, module.original, BATCH.prompts
        turned = 2 * predict(then, unconditional, LATE) - predict(then, concept, LATE)
        away = mse(predict(now, concept, LATE), turned)
        away = away + 0.3 * mse(
            predict(now, unconditional, LATE), predict(then, unconditional, LATE)
        )
        retained = mse(predict(now, concept, EARLY), predict(then, concept, EARLY))
        retained = retained + 0.3 * mse(
            predict(now, unconditional, EARLY), predict(then, unconditional, EARLY)
        )
        assert torch.allclose(
            module.erasure_loss(noisy(module, X, T, BATCH)), away + 0.7 * retained
        )

    def test_at_the_original_early_and_drift_are_nothing_and_have_no_gradient(self):
        module = ant(moved=0.0)
        early = PromptBatch(*(field[1:2] for field in BATCH))
        assert module.erasure_loss(noisy(module, X[1:2], T[1:2], early)) == 0
        assert gradients(module, slice(1, 2)).abs().max() == 0
        assert gradients(module).abs().max() > 0  # the control: late ones do
        without = ant(moved=0.0, drift=0.0)
        losses = [each.erasure_loss(noisy(each, X, T, BATCH)) for each in (module, without)]
        assert torch.allclose(*losses)

    def test_the_drift_terms_have_gradients_once_it_has_moved(self):
        """The official ones are constants."""
        assert not torch.allclose(gradients(ant(drift=1.0)), gradients(ant(drift=0.0)), atol=1e-4)

    def test_drift_is_held_by_it(self):
        without, held = (
            quick_fit(ant(0.0, drift=b, latents=bank(), share=1.0, lr=3e-3, warmup=1), 20)
            for b in (0.0, 3.0)
        )
        assert sum(moved(held, "unconditional")) < 0.7 * sum(moved(without, "unconditional"))

    def test_early_steps_stay_and_late_ones_turn(self):
        module = quick_fit(ant(0.0, latents=bank(), share=1.0, lr=3e-3, warmup=1), 40)
        each, first = moved(module, "concept"), module.first_steps(4)
        assert max(each[:first]) < 0.5 * min(each[first:])


class TestStages:
    @pytest.mark.parametrize(
        ("early", "steps", "first"), [(0.14, 50, 7), (0.14, 20, 3), (0.08, 50, 4), (0.5, 2, 1)]
    )
    def test_the_first_steps_are_early(self, early, steps, first):
        module = ant(early=early, latents=bank(steps=steps))
        times = module.backbone.sampler(steps).times
        assert module.is_early(times).tolist() == [True] * first + [False] * (steps - first)

    def test_one_step_at_least_and_not_all(self):
        assert ant(early=0.01).first_steps(4) == 1
        assert ant(early=0.99).first_steps(4) == 3

    def test_without_a_bank_the_noisiest_times_are(self):
        assert ant(early=0.14).is_early(torch.tensor([0.0, 859.0, 860.0, 999.0])).tolist() == [
            False,
            False,
            True,
            True,
        ]

    def test_a_pair_lies_on_one_trajectory_the_early_moment_first(self):
        module = quick_fit(ant(0.0, latents=bank(steps=8, trajectories=6), share=1.0), 1)
        module.original.denoise = lambda *_: pytest.fail("predicted what the bank has")
        for _ in range(10):
            batch = module.noisy_batch(
                PromptBatch(
                    ["a {}"] * 3, ["cat", "star", "cat"], ["dog", "heart", "dog"], [0, 1, 0]
                )
            )
            assert (batch.t[:3] > batch.t[3:]).all()
            assert module.is_early(batch.t).tolist() == [True] * 3 + [False] * 3
            assert batch.sentences.concepts == ["cat", "star", "cat"] * 2
            assert torch.equal(batch.rows[:3], batch.rows[3:])
            _ = batch.teacher.concept, batch.teacher.unconditional  # known from the rollout


class TestMasks:
    def test_a_map_is_the_larger_half_of_each_tensor(self):
        module = quick_fit(ant(0.0, latents=bank(), maps=1), 1)
        sizes = {name: mask.numel() for name, mask in module.masks.items()}
        assert all(int(mask.sum()) <= sizes[name] // 2 for name, mask in module.masks.items())
        assert 0.45 < module.description()["salient"] <= 0.5

    def test_more_maps_leave_less(self):
        retained = [
            quick_fit(ant(0.0, latents=bank(), maps=maps), 1).description()["salient"]
            for maps in (1, 3)
        ]
        assert retained[0] > retained[1] > 0.5**3  # and more than by chance

    def test_what_is_masked_stays_bit_identical(self):
        module = quick_fit(ant(0.0, latents=bank(), maps=2, lr=1e-2), 3)
        before = dict(TinyBackbone().named_parameters())
        for name, now in edit_of(module).items():
            assert torch.equal(now[~module.masks[name]], before[name][~module.masks[name]])
            assert not module.masks[name].any() or not torch.equal(now, before[name])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"early": 1.0}, "needs early above 0 and below 1; found 1.0"),
        ({"maps": 0}, "maps of at least 1; found 1.0, 0.5, 0"),
        (
            {"latents": bank(steps=1)},
            "needs trajectories of at least 2 steps, an early and a late one; found 1",
        ),
    ],
)
def test_arguments_out_of_range(arguments, words):
    with pytest.raises(ErasureError, match=words):
        ant(**arguments)


@pytest.mark.slow
def test_it_erases_the_cigarette_of_the_emoji_world_and_keeps_the_rest():
    arguments = numbers("ant", lr=3e-4, latents=TrajectoryBank(trajectories=8, steps=10))
    module = quick_fit(
        ANT(backbone="emoji-world", concepts=[Concept("cigarette")], **arguments), 80
    )  # of 2 pairs, there 80 of 4
    assert recognised_before(module, ["cigarette"] * 4) == 1
    assert recognised(module.backbone, ["cigarette"] * 4) == 0
    assert recognised(module.backbone, KEPT) == 1
