"""The positive control: the world's scorer recognises the world's own images."""

import pytest

from erasure_lightning.backbones.loading import load_backbone
from erasure_lightning.concepts.concept import Concept
from erasure_lightning.concepts.vocabulary import Vocabulary
from erasure_lightning.diffusion.sampling import sample_images
from erasure_lightning.metrics.scorer import Scorer
from erasure_lightning.metrics.seed_statistics import RecognitionRate
from erasure_lightning.metrics.zero_shot import ZeroShotClassifier

pytest.importorskip("erasure_lightning_emoji_world")
THINGS = ["panda", "key", "rainbow", "red apple", "hamburger", "frog"]


def test_the_worlds_own_images_are_recognised():
    backbone = load_backbone("emoji-world")
    assert backbone.world is not None
    scorer = Scorer.load(backbone.world.scorer)
    vocabulary = Vocabulary(backbone.world, [Concept("twemoji", kind="style")])
    classifier = ZeroShotClassifier(scorer, vocabulary, [])
    seeds = [0] * len(THINGS)
    prompts = [f"a {thing}" for thing in THINGS] + [f"a {thing}, twemoji style" for thing in THINGS]
    images = scorer.images(
        sample_images(backbone, prompts, [0] * len(prompts), steps=20, guidance=4.0)
    )
    for group, features, lowest in (
        ("specificity", images[:6], 1.0),
        ("efficacy", images[6:], 0.8),
    ):
        metric = RecognitionRate([0])
        metric.update(features, [classifier.candidates(group, thing) for thing in THINGS], seeds)
        assert metric.compute().mean >= lowest
        metric.reset()
        others = [classifier.candidates("specificity", thing) for thing in THINGS]
        metric.update(features.roll(1, 0), others, seeds)
        assert metric.compute().mean == 0
