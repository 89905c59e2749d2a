"""Drift: each of its figures by hand, and the largest PSNR."""

import math

import pytest
import torch
from tiny_scorers import KnownScorer

from erasure_lightning.metrics.drift import drifts, psnr


def images(*levels):
    return torch.stack([torch.full((3, 4, 4), level) for level in levels])


def test_what_is_compared_with_what():
    (first, second) = drifts(images(0.0, 0.5), images(0.1, 0.5), images(0.4, 0.6), None)
    assert first.reconstruction_psnr == pytest.approx(20)
    assert first.purified_psnr == pytest.approx(-20 * math.log10(0.3), abs=1e-4)
    assert first.purified_l1 == pytest.approx(0.3)
    assert second.reconstruction_psnr == 100  # equal images
    assert second.purified_l1 == pytest.approx(0.1)
    assert (first.purified_features, second.purified_features) == (None, None)


def test_features_are_those_of_the_purified_and_the_reconstructed_image():
    scorer = KnownScorer()
    cat, dog = (scorer.picture(text) for text in ("a cat", "a dog"))
    same, other = drifts(
        torch.stack([dog, dog]), torch.stack([cat, cat]), torch.stack([cat, dog]), scorer
    )
    assert same.purified_features == pytest.approx(0, abs=1e-6)
    assert other.purified_features == pytest.approx(1, abs=1e-6)


def test_each_image_has_its_own_ratio():
    assert psnr(images(0.0, 0.0), images(0.1, 1.0)).tolist() == pytest.approx([20, 0], abs=1e-4)
