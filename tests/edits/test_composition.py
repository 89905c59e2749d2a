"""Sums of edits and their overlaps, by hand."""

import pytest
import torch

from erasure_lightning.edits.composition import overlaps, summed

BASE = {"unet.a": torch.tensor([3.0, 4.0]), "unet.b": torch.zeros(1)}
ONE = {"unet.a": torch.tensor([4.0, 4.0]), "unet.b": torch.ones(1)}
OTHER = {"unet.a": torch.tensor([3.0, 6.0])}


def test_each_difference_has_its_strength():
    values = summed([ONE, OTHER], [0.5, 3.0], BASE)
    assert values["unet.a"].tolist() == [3 + 0.5 * 1, 4 + 3.0 * 2]
    assert values["unet.b"].tolist() == [0.5]


def test_an_overlap_has_the_cosine_and_the_sizes_of_both_differences():
    both = {"unet.a": torch.tensor([4.0, 5.0])}
    (overlap,) = overlaps(["one", "both"], [ONE, both], BASE)
    assert overlap.edits == ("one", "both")
    assert overlap.changed == (2, 1)
    assert overlap.tensors == ["unet.a"]
    assert overlap.cosine == pytest.approx(0.5**0.5)
    assert overlap.sizes == pytest.approx((1 / 5, 2**0.5 / 5))


def test_differences_across_one_another_have_a_cosine_of_0():
    (overlap,) = overlaps(["one", "other"], [ONE, OTHER], BASE)
    assert overlap.cosine == pytest.approx(0)
    assert overlap.sizes == pytest.approx((0.2, 0.4))
