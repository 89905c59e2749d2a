"""Base edits in a pipeline: their strengths."""

import pytest
import torch

from erasure_lightning import apply_edit, erase
from erasure_lightning.backbones.tiny import TinyBackbone
from erasure_lightning.errors import ErasureError


def test_a_base_edit_at_another_strength_is_named_with_its_strength(tmp_path):
    files = [tmp_path / name / "edit.safetensors" for name in ("first", "second")]
    options = {"method": "UCE", "anchor": "dog", "progress_bar": False, "accelerator": "cpu"}
    pipeline = TinyBackbone().to_pipeline()
    first = erase(pipeline, "cat", **options)
    first.save(files[0])
    first.strength = 0.5
    erase(pipeline, "star", **options).save(files[1])
    expected = pipeline.unet.state_dict()

    other = TinyBackbone().to_pipeline()
    beneath = apply_edit(files[0], other)
    words = "needs UCE of cat beneath it at strength 0.5; found it at 1. Set that strength first"
    with pytest.raises(ErasureError, match=words):
        apply_edit(files[1], other)
    beneath.strength = 0.5
    apply_edit(files[1], other)
    actual = other.unet.state_dict()
    assert all(torch.equal(actual[name], value) for name, value in expected.items())
    beneath.strength = 1
    apply_edit(files[1], other)  # is in already
