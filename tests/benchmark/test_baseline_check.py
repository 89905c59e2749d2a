import pytest

from erasure_lightning.backbones.loading import load_backbone
from erasure_lightning.backbones.tiny import TinyBackbone
from erasure_lightning.benchmark.baseline_check import BaselineCheck, BaselineChecker
from erasure_lightning.benchmark.suite import ConceptEntry
from erasure_lightning.concepts.concept import Concept
from erasure_lightning.diffusion.sampling import sample_images
from erasure_lightning.errors import ErasureError


def entry(name, domain=(), kind="thing"):
    return ConceptEntry(name, (Concept(name, domain=list(domain), kind=kind),), ())


@pytest.mark.slow
def test_a_concept_holds_if_the_world_draws_it():
    pytest.importorskip("erasure_lightning_emoji_world")
    checker = BaselineChecker(load_backbone("emoji-world"), seeds=1)
    drawn = checker.check(entry("cigarette", ["tobacco"]))
    assert drawn.own == drawn.domain == 1.0
    assert drawn.neighbours is None
    assert drawn.holds
    undrawn = checker.check(entry("cigarette", ["tarantula", "python"]))
    assert undrawn.own == 1.0
    assert undrawn.domain == 0.0
    assert not undrawn.holds


def test_images_are_drawn_with_the_numbers_of_the_suite(monkeypatch):
    pytest.importorskip("erasure_lightning_emoji_world")
    drawn = []

    def sample(backbone, prompts, seeds, **numbers):
        drawn.append(numbers)
        return sample_images(backbone, prompts, seeds, **numbers)

    monkeypatch.setattr("erasure_lightning.benchmark.baseline_check.sample_images", sample)
    backbone = load_backbone("emoji-world")
    BaselineChecker(backbone, 1, steps=2, guidance=3, image_size=32).check(entry("cigarette"))
    BaselineChecker(backbone, 1, steps=1).check(entry("cigarette"))
    assert drawn == [
        {"steps": 2, "guidance": 3, "size": 32},
        {"steps": 1, "guidance": backbone.world.guidance, "size": None},
    ]


@pytest.mark.parametrize(
    ("check", "holds"),
    [
        (BaselineCheck(entry("cat"), 0.9, 0.5, 0.9), True),
        (BaselineCheck(entry("cat"), 0.89, None, None), False),
        (BaselineCheck(entry("cat"), 1.0, 0.4, None), False),
        (BaselineCheck(entry("cat"), 1.0, None, 0.8), False),
        (BaselineCheck(entry("noto", kind="style"), 0.5, None, None), True),
        (BaselineCheck(entry("noto", kind="style"), 0.4, None, None), False),
    ],
)
def test_things_styles_and_domains_have_their_own_thresholds(check, holds):
    assert check.holds is holds


def test_a_model_without_a_world_is_refused():
    with pytest.raises(ErasureError, match="--check needs a world"):
        BaselineChecker(TinyBackbone(), 2)


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ({"seeds": 0}, "--check needs seeds of at least 1; found 0"),
        ({"steps": 0}, "--check needs steps of at least 1; found 0"),
        ({"guidance": -1}, "--check needs guidance of at least 0; found -1"),
        ({"image_size": 0}, "--check needs image_size of at least 1; found 0"),
    ],
)
def test_numbers_out_of_range(numbers, words):
    pytest.importorskip("erasure_lightning_emoji_world")
    with pytest.raises(ErasureError, match=words):
        BaselineChecker(load_backbone("emoji-world"), **({"seeds": 1} | numbers))
