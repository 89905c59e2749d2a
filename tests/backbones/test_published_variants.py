"""Pipelines with the configs of published models that no recipe names draw as in diffusers."""

import pytest
import torch
from published_variants import VARIANTS

from erasure_lightning.backbones.conditioning import END, PADDING
from erasure_lightning.backbones.full_size import full_size_model
from erasure_lightning.backbones.loading import load_backbone
from erasure_lightning.diffusion.sampling import sample_latents

PROMPTS, SEEDS = ["a dog", "a cat", "the star", "a heart"], [3, 4, 5, 6]

#: Arguments of the stock call: those of the models' own cards. Ours has no guidance at 1.
DRAWN = {
    "sd15": {"num_inference_steps": 4, "guidance_scale": 7.5},
    "sdxl": {"num_inference_steps": 2, "guidance_scale": 0.0},
    "flux": {"num_inference_steps": 4, "guidance_scale": 0.0},
}


@pytest.mark.parametrize("family", VARIANTS)
def test_latents_of_a_folder_equal_stock(family, tmp_path):
    pipeline = VARIANTS[family].build()
    pipeline.save_pretrained(tmp_path)
    model = load_backbone(str(tmp_path))
    pipeline.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    options = {"max_sequence_length": 20} if family == "flux" else {}
    size = {"height": 16, "width": 16}
    theirs = pipeline(
        PROMPTS, generator=generators, output_type="latent", **DRAWN[family], **size, **options
    ).images
    if family == "flux":
        theirs = pipeline._unpack_latents(theirs, 16, 16, pipeline.vae_scale_factor)
    steps = DRAWN[family]["num_inference_steps"]
    drawn = {"steps": steps, "size": 16}
    guidance = max(DRAWN[family]["guidance_scale"], 1.0)
    assert torch.equal(sample_latents(model, PROMPTS, SEEDS, guidance=guidance, **drawn), theirs)
    others = sample_latents(model, PROMPTS, SEEDS, guidance=guidance + 1, **drawn)
    assert not torch.equal(others, theirs)  # the control; of schnell the documented difference


def test_padding_by_another_token_is_padding(tmp_path):
    VARIANTS["sd15"].build().save_pretrained(tmp_path)
    model = load_backbone(str(tmp_path))
    (tower,) = model.towers
    assert tower.tokenizer.pad_token_id == 0 != tower.tokenizer.eos_token_id
    (embedded,) = model.embed(["a cat"])
    assert embedded.positions(END).sum() == 1
    assert embedded.ids[embedded.positions(PADDING)].eq(0).all()
    assert embedded.positions(PADDING).sum() == embedded.ids.shape[1] - 4


def test_published_shapes_are_known_for_plans():
    """Sides of the latents, and T5's tokens of FLUX.1-schnell."""
    models = {family: full_size_model(variant.hub_id) for family, variant in VARIANTS.items()}
    sides = {family: model.latent_shape()[1] for family, model in models.items()}
    assert sides == {"sd15": 96, "sdxl": 64, "flux": 128}
    assert models["flux"].towers[1].length == 256
