"""Metrics of images: the labels of a prompt, and the sentences of labels."""

import pytest
import torch
from tiny_scorers import KnownScorer

from erasure_lightning.metrics.image_metrics import LabelAccuracy, MetricBatch

STAGES = ("before", "after")


@pytest.fixture
def scorer():
    return KnownScorer()


def batch(scorer, prompts, before, after):
    images = {
        when: torch.stack([scorer.picture(text) for text in texts])
        for when, texts in (("before", before), ("after", after))
    }
    return MetricBatch(prompts, range(len(prompts)), images, {})


def test_an_image_s_label_is_that_of_its_sentence(scorer):
    metric = LabelAccuracy(scorer, ["cat", "dog"], "a photo of a {}", STAGES, [0, 1])
    right, wrong = "a photo of a cat", "a photo of a dog"
    metric.update(batch(scorer, ["my cat", "the dog"], [right, wrong], [wrong, wrong]))
    accuracy = metric.estimates()["accuracy"]
    assert [accuracy[when].mean for when in STAGES] == [1.0, 0.5]


@pytest.mark.parametrize("template", ["a {} in {place}", "{{}}", "{}, {}", "{0} {}"])
def test_other_braces_of_a_template_are_text(scorer, template):
    metric = LabelAccuracy(scorer, ["cat", "dog"], template, STAGES, [0])
    assert torch.equal(
        metric.texts, scorer.texts([template.replace("{}", x) for x in metric.labels])
    )
    assert not torch.equal(*metric.texts)


def test_of_labels_in_a_prompt_the_longest_counts(scorer):
    metric = LabelAccuracy(scorer, ["dog", "hot dog", "og"], "{}", STAGES, [0])
    assert metric.label_in("A Hot-dog, please") == "hot dog"
    assert metric.label_in("a dog in the heat") == "dog"
    assert metric.label_in("fog") is None
