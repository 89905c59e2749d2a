"""Benign fine-tuning: its curve, and when the concept returns."""

import pytest
import torch
from under_attack import (
    CAT,
    check_repeatable,
    check_untrained,
    cigarette,
    plain_images,
    tiny_target,
)

from erasure_lightning.attacks.benign_fine_tune import BenignFineTune
from erasure_lightning.attacks.target import AttackTarget
from erasure_lightning.concepts.concept import Concept
from erasure_lightning.errors import ErasureError

FEW = {"steps": 4, "points": 2, "examples": 3, "lr": 1e-2}


def attack(**arguments):
    return BenignFineTune(**(FEW | arguments))


class TestCurve:
    def test_it_starts_at_the_edited_model_s_plain_images_and_ends_at_the_budget(self):
        target = tiny_target()
        (result,) = attack().run(target, 0)
        (case,) = target.cases(0)
        assert list(result.curve) == [0, 2, 4]
        assert torch.equal(result.curve[0], plain_images(target, case))
        assert torch.equal(result.curve[4], result.images)
        assert not torch.equal(result.curve[0], result.images)

    @pytest.mark.parametrize("arguments", [{"steps": 0}, {"lr": 0.0}], ids=str)
    def test_without_training_the_images_are_the_plain_ones(self, arguments):
        check_untrained(attack, **arguments)

    def test_its_end_does_not_depend_on_the_number_of_points(self):
        target = tiny_target()
        often, once = (attack(points=points).run(target, 0)[0] for points in (4, 1))
        assert torch.equal(often.images, once.images)
        assert len(often.curve) == 5


def test_equal_seeds_give_equal_results_and_the_model_is_not_modified():
    check_repeatable(attack)


def test_it_is_one_training_for_all_concepts():
    both = tiny_target(concepts=[*CAT, Concept("star", "heart")])
    assert len(attack().run(both, 0)) == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"steps": -1}, "BenignFineTune needs steps of at least 0; found -1"),
        ({"points": 0}, "points of at least 1; found 0"),
        ({"examples": 0}, "examples of at least 1; found 0"),
        ({"lr": -1.0}, "lr of at least 0; found -1"),
        ({"threshold": -0.1}, "threshold of 0 to 1"),
    ],
)
def test_numbers_out_of_range(arguments, words):
    with pytest.raises(ErasureError, match=words):
        attack(**arguments)


def broken():
    """The emoji world with a shift in its denoiser's last bias: cigarettes are gone, and so is most
    of the rest.
    """
    target, bias = cigarette(erased=False, steps=20), "denoiser.conv_out.bias"
    edited = target.original.frozen_copy([bias])
    edited.get_parameter(bias).data.add_(1.5)
    return AttackTarget(edited, target.original, target.concepts, target.settings, target.scorer)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make_target", "start", "end"),
    [(broken, 0.5, 1.0), (cigarette, 0.0, 0.0)],
    ids=["broken", "UCE"],
)
def test_it_repairs_a_broken_model_and_not_an_erasure(make_target, start, end):
    pytest.importorskip("erasure_lightning_emoji_world")
    target = make_target()
    (case,) = target.cases(0)
    (result,) = BenignFineTune(steps=30, points=1, examples=6, batch_size=2).run(target, 0)
    first, last = (target.success_rate(case, images) for images in result.curve.values())
    assert first <= start
    assert abs(last - end) <= 0.25


@pytest.mark.slow
def test_an_unedited_model_keeps_the_concept():
    pytest.importorskip("erasure_lightning_emoji_world")
    target = cigarette(erased=False)
    (case,) = target.cases(0)
    (result,) = BenignFineTune(steps=10, points=1, examples=4, batch_size=4).run(target, 0)
    assert target.success_rate(case, result.images) == 1
