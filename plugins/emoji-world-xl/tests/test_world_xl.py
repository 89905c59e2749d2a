"""The package has its own weights only; with the emoji world it is a whole pipeline."""

import shutil
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from erasure_lightning_emoji_world_xl import ROOT
from shared_world import SharedWorld

from erasure_lightning.concepts.worlds import World


class TestWorld(SharedWorld):
    name = "emoji-world-xl"
    root = ROOT
    shared: ClassVar = {
        "pipeline/vae/diffusion_pytorch_model.safetensors": "411d666c4750fd49",
        "pipeline/text_encoder/model.safetensors": "401b49e5db49e0c1",
    }
    sampling = (20, 4.0, 64)

    def test_pipeline_is_the_stock_one(
        self, world: World, pipeline: StableDiffusionXLPipeline, tmp_path: Path
    ) -> None:
        shutil.copytree(world.pipeline, tmp_path, dirs_exist_ok=True)
        for name in ("vae", "text_encoder", "tokenizer", "tokenizer_2"):
            shutil.copytree(world.component(name), tmp_path / name)
        stock = StableDiffusionXLPipeline.from_pretrained(tmp_path, dtype=torch.float32)
        self.check_stock(pipeline, stock, ("unet", "vae", "text_encoder", "text_encoder_2"))


@pytest.mark.parametrize("file", ["LICENSE", "README.md"])
def test_paperwork_of_a_checkout(file: str) -> None:
    assert (Path(__file__).parents[1] / file).read_text(encoding="utf-8").strip()
