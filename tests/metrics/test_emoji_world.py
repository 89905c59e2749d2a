"""The positive control: on pictures that are known to be good, the scorer finds what was asked for."""

import pytest

from erasure_lightning.backbones.loading import load_backbone
from erasure_lightning.concepts.concept import Concept
from erasure_lightning.concepts.vocabulary import Vocabulary
from erasure_lightning.diffusion.sampling import sample_images
from erasure_lightning.metrics.scorer import Scorer
from erasure_lightning.metrics.seed_statistics import Recognized
from erasure_lightning.metrics.zero_shot import ZeroShotClassifier

pytest.importorskip("erasure_lightning_emoji_world")
THINGS = ["panda", "key", "rainbow", "red apple", "hamburger", "frog"]


def test_the_worlds_own_pictures_are_recognised():
    backbone = load_backbone("emoji-world")
    assert backbone.world is not None
    scorer = Scorer.load(backbone.world.scorer)
    judge = ZeroShotClassifier(
        scorer, Vocabulary(backbone.world, [Concept("twemoji", kind="style")]), []
    )
    prompts = [f"a {thing}" for thing in THINGS] + [f"a {thing}, twemoji style" for thing in THINGS]
    images = scorer.images(
        sample_images(backbone, prompts, [0] * len(prompts), steps=20, guidance=4.0)
    )
    for group, chosen, least in (("specificity", images[:6], 1.0), ("efficacy", images[6:], 0.8)):
        metric = Recognized(1)
        metric.update(chosen, [judge.question(group, thing) for thing in THINGS], [0] * len(THINGS))
        assert metric.compute().mean >= least
        metric.reset()
        metric.update(
            chosen.roll(1, 0),
            [judge.question("specificity", thing) for thing in THINGS],
            [0] * len(THINGS),
        )
        assert metric.compute().mean == 0
