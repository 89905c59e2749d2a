"""Benign fine-tune: what it trains on, its curve, and when the concept comes back."""

import pytest
import torch
from under_attack import CAT, cigarette, tiny_target, weights

from erasure_lightning.attacks.benign_fine_tune import BenignFineTune, harmless
from erasure_lightning.attacks.target import Target
from erasure_lightning.concepts.concept import Concept
from erasure_lightning.concepts.vocabulary import Vocabulary
from erasure_lightning.concepts.worlds import find_world
from erasure_lightning.errors import ErasureError

FEW = {"steps": 4, "points": 2, "examples": 3, "lr": 1e-2}


def attack(**arguments):
    return BenignFineTune(**(FEW | arguments))


def plain(target, case):
    return target.draw(target.edited.encode([case.sentence]), case.seeds)


class TestSentences:
    def test_none_holds_a_word_of_the_concepts_or_their_domains(self):
        erased = [Concept("hot dog", "pizza", domain=["glass"])]
        said = harmless(Vocabulary(None, erased), 400)
        words = {word for sentence in said for word in sentence.split()}
        assert not words & {"hot", "dog", "glass", "wine"}
        assert {"cat", "fork", "spoon"} <= words

    def test_while_a_style_is_erased_all_name_another(self):
        world = find_world("emoji-world")
        if world is None:
            pytest.skip("needs the emoji world")
        said = harmless(Vocabulary(world, [Concept("twemoji", "noto", kind="style")]), 50)
        styles = [style for style in world.styles if style != "twemoji"]
        assert all(any(f"{style} style" in sentence for style in styles) for sentence in said)
        assert not any("twemoji" in sentence for sentence in said)

    def test_nothing_left_to_train_on(self):
        vocabulary = Vocabulary(None, [Concept("everything")])
        vocabulary.labels = ("everything", "nearly everything")
        with pytest.raises(ErasureError, match="found none that shares no word"):
            harmless(vocabulary, 1)


class TestCurve:
    def test_it_starts_at_the_edited_model_s_plain_pictures_and_ends_at_the_budget(self):
        target = tiny_target()
        (found,) = attack().run(target, 0)
        (case,) = target.cases(0)
        assert list(found.curve) == [0, 2, 4]
        assert torch.equal(found.curve[0], plain(target, case))
        assert torch.equal(found.curve[4], found.pictures)
        assert not torch.equal(found.curve[0], found.pictures)

    @pytest.mark.parametrize("arguments", [{"steps": 0}, {"lr": 0.0}], ids=str)
    def test_without_training_the_pictures_are_the_plain_ones(self, arguments):
        target = tiny_target()
        (case,) = target.cases(1)
        (found,) = attack(**arguments).run(target, 1)
        assert torch.equal(found.pictures, plain(target, case))
        (control,) = attack().run(target, 1)
        assert not torch.allclose(control.pictures, plain(target, case), atol=1e-3)

    def test_its_end_does_not_depend_on_where_it_is_looked_at(self):
        target = tiny_target()
        often, once = (attack(points=points).run(target, 0)[0] for points in (4, 1))
        assert torch.equal(often.pictures, once.pictures)
        assert len(often.curve) == 5


def test_a_seed_gives_one_finding_and_leaves_the_model_alone():
    target = tiny_target()
    before = weights(target.edited)
    first, again, other = (attack(seed=seed).run(target, 0)[0] for seed in (0, 0, 1))
    assert torch.equal(first.pictures, again.pictures)
    assert not torch.equal(first.pictures, other.pictures)
    assert all(torch.equal(before[n], value) for n, value in weights(target.edited).items())
    assert not any(p.grad is not None for p in target.edited.parameters())


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
    return Target(edited, target.original, target.concepts, target.trials, target.scorer)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("made", "start", "end"), [(broken, 0.5, 1.0), (cigarette, 0.0, 0.0)], ids=["broken", "UCE"]
)
def test_what_was_only_broken_is_mended_and_what_was_erased_is_not(made, start, end):
    pytest.importorskip("erasure_lightning_emoji_world")
    target = made()
    (case,) = target.cases(0)
    (found,) = BenignFineTune(steps=40, points=1, examples=8).run(target, 0)
    first, last = (target.share(case, pictures) for pictures in found.curve.values())
    assert first <= start
    assert abs(last - end) <= 0.25


@pytest.mark.slow
def test_a_model_that_forgot_nothing_stays_as_it_is():
    pytest.importorskip("erasure_lightning_emoji_world")
    target = cigarette(erased=False)
    (case,) = target.cases(0)
    (found,) = BenignFineTune(steps=20, points=1, examples=8).run(target, 0)
    assert target.share(case, found.pictures) == 1
