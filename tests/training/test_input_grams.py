"""Gram matrices of prompts, by hand: sums over tokens, and means over those that are read."""

import pytest
import torch

from erasure_lightning.backbones.tiny import TinyBackbone, TinyPixArt
from erasure_lightning.training.input_grams import _CHUNK, input_gram, mean_input_gram

PROMPTS = ["a cat", "a photo of a small dog", ""]


@pytest.mark.parametrize("family", [TinyBackbone, TinyPixArt])
def test_sums_and_means_by_hand(family):
    """Padding counts where the denoiser reads it: PixArt's does not."""
    model = family()
    source = model.text_inputs()[0]
    conditioning = model.encode(PROMPTS)
    read = source.read(conditioning)
    rows = source.rows(conditioning)[read].double()
    total = rows.mT @ rows
    assert torch.allclose(input_gram(model, PROMPTS, source), total, rtol=1e-5)
    mean = mean_input_gram(model, PROMPTS, source)
    assert torch.allclose(mean, total / (len(rows) / 3), rtol=1e-5)
    assert bool(read.all()) == (family is TinyBackbone)  # the control


def test_many_prompts_are_as_one_and_one(tiny):
    source = tiny.text_inputs()[0]
    many = PROMPTS[:1] * (_CHUNK + 1)
    one = input_gram(tiny, PROMPTS[:1], source)
    assert torch.allclose(input_gram(tiny, many, source), len(many) * one, rtol=1e-5)
    assert torch.allclose(mean_input_gram(tiny, many, source), len(many) * one / 16, rtol=1e-5)
