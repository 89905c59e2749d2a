"""Pipelines with textual inversions of several vectors, whose tokens the stock pipelines add."""

import pytest
import torch

from erasure_lightning.backbones.conditioning import CONCEPT
from erasure_lightning.backbones.stable_diffusion import StableDiffusion
from erasure_lightning.backbones.tiny import TinyBackbone
from erasure_lightning.concepts.concept import fill_template
from erasure_lightning.diffusion.sampling import sample_latents


@pytest.fixture
def pipeline():
    pipeline = TinyBackbone().to_pipeline()
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    for token, vectors in {"<sks>": 3, "<one>": 1}.items():
        pipeline.load_textual_inversion(
            {token: torch.randn(vectors, 32, generator=generator)}, token=token
        )
    return pipeline


@pytest.fixture
def backbone(pipeline):
    return StableDiffusion.from_pipeline("inverted", pipeline)


@pytest.mark.parametrize("words", ["<sks>", "<one>", "<sks> and <sks>", "<sks>_1", "cat"])
def test_sampling_equals_stock(pipeline, backbone, words):
    prompts = [f"a photo of a {words}"] * 5
    seeds = list(range(5))
    theirs = pipeline(
        prompts,
        num_inference_steps=2,
        guidance_scale=4.0,
        latents=backbone.noise(seeds),
        output_type="latent",
    ).images
    assert torch.equal(sample_latents(backbone, prompts, seeds, steps=2, guidance=4.0), theirs)


def test_all_vectors_are_the_concept(backbone):
    (embedded,) = backbone.embed([fill_template("a {} in a house", "<sks>")])
    ids = backbone.towers[0].tokenizer.convert_tokens_to_ids(["<sks>", "<sks>_1", "<sks>_2"])
    assert embedded.ids[0, embedded.roles[0] == CONCEPT].tolist() == ids


def test_they_count_as_tokens(backbone):
    prompts = ["<sks> " * 4, "<sks> " * 5]
    assert backbone.too_long(prompts) == prompts[1:]
