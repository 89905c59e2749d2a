"""Relearning: which pictures it learns from, its curve, and when the concept comes back."""

import pytest
import torch
from under_attack import cigarette, tiny_target, weights

from erasure_lightning.attacks.relearning_curve import RelearningCurve
from erasure_lightning.concepts.concept import Concept
from erasure_lightning.diffusion.fine_tuning import FineTuning
from erasure_lightning.errors import ErasureError

FEW = {"examples": [0, 1, 3], "steps": 2, "lr": 1e-2}


def attack(**arguments):
    return RelearningCurve(**(FEW | arguments))


def plain(target, case):
    return target.draw(target.edited.encode([case.sentence]), case.seeds)


def test_more_examples_are_the_fewer_and_some_more_under_the_concept_s_sentences(monkeypatch):
    tunings = []
    made = FineTuning.__init__
    monkeypatch.setattr(
        FineTuning, "__init__", lambda s, *a, **k: tunings.append((s, a)) or made(s, *a, **k)
    )
    target = tiny_target()
    attack().run(target, 0)
    (one, (edited, shown, first)), (three, (_, also, said)), (_, (pupil, _, new)) = tunings
    assert edited is target.edited
    assert one is not three
    assert shown is also
    assert [len(first), len(said), len(shown.latents)] == [1, 3, 3]
    assert first == said[:1]
    assert all(sentence.text[sentence.start : sentence.stop] == "cat" for sentence in said)
    assert pupil is target.original
    assert [sentence.text for sentence in new] == [
        sentence.text.replace("cat", "sks") for sentence in said
    ]


def test_a_style_is_learned_on_the_thing_it_is_asked_of(monkeypatch):
    said = []
    monkeypatch.setattr(
        FineTuning, "advance", lambda self, to: said.extend(self.prompts) or self.model
    )
    target = tiny_target(concepts=[Concept("drawing", kind="style")])
    attack().run(target, 0)
    (case,) = target.cases(0)
    assert case.thing
    learned, control = said[:4], said[4:]
    assert all(case.thing in sentence.text and "drawing" in sentence.text for sentence in learned)
    assert all(case.thing in sentence.text and "sks" in sentence.text for sentence in control)


def test_the_curve_ends_at_what_it_draws():
    target = tiny_target()
    (found,) = attack().run(target, 0)
    (case,) = target.cases(0)
    assert list(found.curve) == [0, 1, 3]
    assert torch.equal(found.curve[0], plain(target, case))
    assert torch.equal(found.curve[3], found.pictures)
    assert not torch.equal(found.curve[0], found.pictures)


@pytest.mark.parametrize("arguments", [{"examples": [0]}, {"steps": 0}, {"lr": 0.0}], ids=str)
def test_without_training_the_pictures_are_the_plain_ones(arguments):
    target = tiny_target()
    (case,) = target.cases(1)
    (found,) = attack(**arguments).run(target, 1)
    assert torch.equal(found.pictures, plain(target, case))
    (control,) = attack().run(target, 1)
    assert not torch.allclose(control.pictures, plain(target, case), atol=1e-3)


def test_a_seed_gives_one_finding_and_leaves_the_model_alone():
    target = tiny_target()
    before = weights(target.edited)
    first, again, other = (attack(seed=seed).run(target, 0)[0] for seed in (0, 0, 1))
    assert torch.equal(first.pictures, again.pictures)
    assert not torch.equal(first.pictures, other.pictures)
    assert all(torch.equal(before[n], value) for n, value in weights(target.edited).items())
    assert not any(p.grad is not None for p in target.edited.parameters())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"examples": []}, r"rising examples of at least 0, such as \[0, 1, 2, 4\]; found \[\]"),
        ({"examples": [2, 1]}, r"found \[2, 1\]"),
        ({"examples": [1, 1]}, r"found \[1, 1\]"),
        ({"examples": [-1, 1]}, r"found \[-1, 1\]"),
        ({"steps": -1}, "steps of at least 0; found -1"),
        ({"batch_size": 0}, "batch_size of at least 1"),
        ({"threshold": 1.5}, "threshold of 0 to 1, a share of pictures; found 1.5"),
    ],
)
def test_numbers_out_of_range(arguments, words):
    with pytest.raises(ErasureError, match=words):
        attack(**arguments)


def test_the_control_asks_the_original_for_the_word_it_was_taught():
    target = tiny_target()
    (found,) = attack(lr=0.0).run(target, 0)
    (case,) = target.cases(0)
    asked = target.original.encode([case.sentence.replace("cat", "sks")])
    assert torch.equal(
        found.controls["new word"], target.draw(asked, case.seeds, model=target.original)
    )


@pytest.mark.slow
def test_the_cigarette_is_back_after_two_pictures_and_after_none_nothing_is():
    pytest.importorskip("erasure_lightning_emoji_world")
    target = cigarette()
    (found,) = RelearningCurve(examples=[0, 2]).run(target, 0)
    (case,) = target.cases(0)
    assert target.share(case, found.curve[0]) == 0
    assert target.share(case, found.pictures) >= 0.75
    (untaught,) = RelearningCurve(examples=[0]).run(target, 0)
    assert (
        target.share(case, untaught.controls["new word"]) == 0
    )  # the original does not know the word


@pytest.mark.slow
def test_a_model_that_forgot_nothing_has_nothing_to_relearn():
    pytest.importorskip("erasure_lightning_emoji_world")
    target = cigarette(erased=False)
    (found,) = RelearningCurve(examples=[0, 1]).run(target, 0)
    (case,) = target.cases(0)
    assert [target.share(case, pictures) for pictures in found.curve.values()] == [1, 1]
