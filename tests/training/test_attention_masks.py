"""Masks from attention: where the looks go, at every resolution."""

import torch

from erasure_lightning.backbones.conditioning import CONCEPT
from erasure_lightning.backbones.tiny import TinyBackbone
from erasure_lightning.training.attention_masks import concept_mask, concept_relevance

POSITIONS = torch.tensor([[False, True, True, False]] * 2)


def looking(side, *pixels):
    """Attention ``(2, 1, side^2, 4)`` where these pixels look at the marked positions and the
    others at the first.
    """
    maps = torch.zeros(2, 1, side * side, 4)
    maps[..., 0] = 1
    maps[:, :, list(pixels)] = torch.tensor([0.0, 0.5, 0.5, 0.0])
    return maps


def test_relevance_is_the_mean_over_heads_positions_and_layers():
    maps = {name: torch.rand(2, 3, 16, 4) for name in "ab"}
    by_hand = torch.stack([m[..., 1:3].mean(dim=(1, 3)) for m in maps.values()]).mean(dim=0)
    assert torch.allclose(concept_relevance(maps, POSITIONS), by_hand.unflatten(1, (4, 4)))
    only = concept_relevance(
        {"a": maps["a"], "fine": torch.rand(2, 3, 64, 4)}, POSITIONS, pixels=16
    )
    assert torch.allclose(only, maps["a"][..., 1:3].mean(dim=(1, 3)).unflatten(1, (4, 4)))


def test_the_mask_marks_the_pixels_that_look_at_the_concept():
    masks = concept_mask({"fine": looking(4, 0, 1, 4, 5), "coarse": looking(2, 0)}, POSITIONS, 0.5)
    assert masks["fine"][0].nonzero().flatten().tolist() == [0, 1, 4, 5]
    assert masks["coarse"][0].nonzero().flatten().tolist() == [0]
    elsewhere = concept_mask({"fine": looking(4, 15)}, POSITIONS, 0.5)
    assert elsewhere["fine"][0].nonzero().flatten().tolist() == [15]


def test_each_image_of_a_batch_has_its_own_mask():
    maps = torch.cat([looking(4, 3)[:1], looking(4, 12)[:1]])
    mask = concept_mask({"layer": maps}, POSITIONS, 0.5)["layer"]
    assert mask.nonzero().tolist() == [[0, 3], [1, 12]]


def test_the_threshold_is_a_share_of_the_range():
    maps = {"layer": torch.zeros(2, 1, 4, 4)}
    maps["layer"][..., 1] = torch.tensor([0.2, 0.3, 0.5, 0.6])
    counts = [
        int(concept_mask(maps, POSITIONS, threshold)["layer"][0].sum())
        for threshold in (0, 0.2, 0.7, 1)
    ]
    assert counts == [4, 3, 2, 1]


def test_the_range_is_that_of_each_image():
    maps = torch.zeros(2, 1, 4, 4)
    maps[0, ..., 1] = torch.tensor([0.0, 0.1, 0.2, 0.2])
    maps[1, ..., 1] = torch.tensor([0.6, 0.7, 0.8, 0.8])
    mask = concept_mask({"layer": maps}, POSITIONS, 0.75)["layer"]
    assert mask.tolist() == [[False, False, True, True]] * 2


def test_a_map_without_contrast_marks_everything():
    assert concept_mask({"layer": torch.full((2, 1, 4, 4), 0.25)}, POSITIONS, 0.5)["layer"].all()
    assert concept_mask({"layer": torch.rand(2, 1, 4, 4)}, torch.zeros_like(POSITIONS), 0.5)[
        "layer"
    ].all()


def test_it_reads_what_a_backbone_collects():
    tiny = TinyBackbone()
    embedded = tiny.embed(["a cat", "a photo of a xylophone"])
    with tiny.attention() as maps:
        tiny.denoise(
            torch.randn(2, 4, 8, 8), torch.tensor([100, 900]), tiny.contextualize(embedded)
        )
    masks = concept_mask(maps, embedded[0].positions(CONCEPT), 0.5, pixels=16)
    assert {name: mask.shape for name, mask in masks.items()} == {
        n: (2, m.shape[2]) for n, m in maps.items()
    }
    assert not any(mask.requires_grad for mask in masks.values())
