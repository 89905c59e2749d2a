"""Relearning: the training images, the curve, and when the concept returns."""

import pytest
import torch
from under_attack import check_repeatable, check_untrained, cigarette, plain_images, tiny_target

from erasure_lightning.attacks.relearning_curve import RelearningCurve
from erasure_lightning.concepts.concept import Concept
from erasure_lightning.diffusion.fine_tuning import FineTuning
from erasure_lightning.diffusion.latent_dataset import LatentDataset
from erasure_lightning.errors import ErasureError

FEW = {"examples": [0, 1, 3], "steps": 2, "lr": 1e-2}


def attack(**arguments):
    return RelearningCurve(**(FEW | arguments))


def test_larger_sets_of_examples_contain_the_smaller_ones(monkeypatch):
    tunings = []
    constructor = FineTuning.__init__
    monkeypatch.setattr(
        FineTuning, "__init__", lambda s, *a, **k: tunings.append((s, a)) or constructor(s, *a, **k)
    )
    target = tiny_target()
    attack().run(target, 0)
    (one, (edited, shown, first)), (three, (_, also, prompts)), (_, (pupil, _, new)) = tunings
    assert edited is target.edited
    assert one is not three
    assert shown is also
    assert [len(first), len(prompts), len(shown.latents)] == [1, 3, 3]
    assert first == prompts[:1]
    assert all(sentence.text[sentence.start : sentence.stop] == "cat" for sentence in prompts)
    assert pupil is target.original
    assert [sentence.text for sentence in new] == [
        sentence.text.replace("cat", "sks") for sentence in prompts
    ]


def test_images_and_training_have_its_numbers(monkeypatch):
    settings = {}
    for kind in (LatentDataset, FineTuning):
        constructor = kind.__init__

        def recorded(self, *arguments, kind=kind, constructor=constructor, **numbers):
            settings[kind] = numbers
            constructor(self, *arguments, **numbers)

        monkeypatch.setattr(kind, "__init__", recorded)
    target = tiny_target(steps=3, guidance=2.5)
    few = {"examples": [1], "steps": 1, "train": "x", "batch_size": 5}
    attack(**few).run(target, 0)
    assert settings[LatentDataset] == {"steps": 3, "guidance": 2.5, "size": None}
    seed = settings[FineTuning].pop("seed")
    assert settings[FineTuning] == {"train": "x", "lr": 1e-2, "batch_size": 5}
    attack(seed=1, **few).run(target, 0)
    assert settings[FineTuning]["seed"] != seed


def test_a_style_is_learned_on_the_thing_of_the_case(monkeypatch):
    prompts = []
    monkeypatch.setattr(
        FineTuning, "advance", lambda self, to: prompts.extend(self.prompts) or self.model
    )
    target = tiny_target(concepts=[Concept("drawing", kind="style")])
    attack().run(target, 0)
    (case,) = target.cases(0)
    assert case.thing
    learned, control = prompts[:4], prompts[4:]
    assert all(case.thing in sentence.text and "drawing" in sentence.text for sentence in learned)
    assert all(case.thing in sentence.text and "sks" in sentence.text for sentence in control)


def test_the_curve_ends_at_the_result_s_images():
    target = tiny_target()
    (result,) = attack().run(target, 0)
    (case,) = target.cases(0)
    assert list(result.curve) == [0, 1, 3]
    assert torch.equal(result.curve[0], plain_images(target, case))
    assert torch.equal(result.curve[3], result.images)
    assert not torch.equal(result.curve[0], result.images)


@pytest.mark.parametrize("arguments", [{"examples": [0]}, {"steps": 0}, {"lr": 0.0}], ids=str)
def test_without_training_the_images_are_the_plain_ones(arguments):
    check_untrained(attack, **arguments)


def test_equal_seeds_give_equal_results_and_the_model_is_not_modified():
    check_repeatable(attack)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"examples": []}, r"rising examples of at least 0, such as \[0, 1, 2, 4\]; found \[\]"),
        ({"examples": 2}, r"rising examples of at least 0, such as \[0, 1, 2, 4\]; found 2\."),
        ({"examples": "12"}, "found '12'"),
        ({"examples": [0.5, 1]}, r"found \[0\.5, 1\]"),
        ({"examples": [2, 1]}, r"found \[2, 1\]"),
        ({"examples": [1, 1]}, r"found \[1, 1\]"),
        ({"examples": [-1, 1]}, r"found \[-1, 1\]"),
        ({"steps": -1}, "steps of at least 0; found -1"),
        ({"batch_size": 0}, "batch_size of at least 1"),
        ({"threshold": 1.5}, "threshold of 0 to 1, a share of images; found 1.5"),
    ],
)
def test_numbers_out_of_range(arguments, words):
    with pytest.raises(ErasureError, match=words):
        attack(**arguments)


@pytest.mark.parametrize(
    ("name", "seed", "sentence"), [("cat", 0, "a sks"), ("mage", 1, "an image of a sks")]
)
def test_the_control_trains_and_evaluates_the_original_on_the_rare_word(name, seed, sentence):
    target = tiny_target([Concept(name)])
    (result,) = attack(lr=0.0).run(target, seed)
    (case,) = target.cases(seed)
    conditioning = target.original.encode([sentence])
    assert torch.equal(
        result.controls["new word"],
        target.generate(conditioning, case.seeds, model=target.original),
    )


@pytest.mark.slow
def test_the_cigarette_is_back_after_two_images_and_not_after_none():
    pytest.importorskip("erasure_lightning_emoji_world")
    target = cigarette(images=2)
    (result,) = RelearningCurve(examples=[0, 2], batch_size=4).run(target, 0)
    (case,) = target.cases(0)
    assert target.success_rate(case, result.curve[0]) == 0
    assert target.success_rate(case, result.images) >= 0.75
    (untrained,) = RelearningCurve(examples=[0]).run(target, 0)
    # The original does not know the word.
    assert target.success_rate(case, untrained.controls["new word"]) == 0


@pytest.mark.slow
def test_an_unedited_model_has_a_flat_curve():
    pytest.importorskip("erasure_lightning_emoji_world")
    target = cigarette(erased=False, images=2)
    (result,) = RelearningCurve(examples=[0, 1], batch_size=2, steps=4).run(target, 0)
    (case,) = target.cases(0)
    assert [target.success_rate(case, images) for images in result.curve.values()] == [1, 1]
