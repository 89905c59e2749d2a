import pytest

from erasure_lightning.backbones.loading import load_backbone
from erasure_lightning.backbones.tiny import TinyBackbone
from erasure_lightning.benchmark.baseline_check import BaselineCheck, Examiner
from erasure_lightning.benchmark.suite import ConceptEntry
from erasure_lightning.concepts.concept import Concept
from erasure_lightning.errors import ErasureError


def entry(name, domain=(), kind="thing"):
    return ConceptEntry(name, (Concept(name, domain=list(domain), kind=kind),), ())


@pytest.mark.slow
def test_what_the_world_draws_holds_and_what_it_does_not_does_not():
    pytest.importorskip("erasure_lightning_emoji_world")
    examiner = Examiner(load_backbone("emoji-world"), seeds=1)
    drawn = examiner.premise(entry("cigarette", ["tobacco"]))
    assert drawn.own == drawn.domain == 1.0
    assert drawn.neighbours is None
    assert drawn.holds
    strange = examiner.premise(entry("cigarette", ["tarantula", "python"]))
    assert strange.own == 1.0
    assert strange.domain == 0.0
    assert not strange.holds


@pytest.mark.parametrize(
    ("premise", "holds"),
    [
        (BaselineCheck(entry("cat"), 0.9, 0.5, 0.9), True),
        (BaselineCheck(entry("cat"), 0.89, None, None), False),
        (BaselineCheck(entry("cat"), 1.0, 0.4, None), False),
        (BaselineCheck(entry("cat"), 1.0, None, 0.8), False),
        (BaselineCheck(entry("noto", kind="style"), 0.5, None, None), True),
        (BaselineCheck(entry("noto", kind="style"), 0.4, None, None), False),
    ],
)
def test_enough_is_a_matter_of_what_was_asked(premise, holds):
    assert premise.holds is holds


def test_without_a_world_nothing_can_be_recognised():
    with pytest.raises(ErasureError, match="--check needs a world"):
        Examiner(TinyBackbone(), 2)
