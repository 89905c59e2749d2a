"""The package has its own weights only; with the emoji world it is a whole FLUX pipeline."""

import json
import shutil
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from diffusers import FluxPipeline
from erasure_lightning_emoji_world_flux import ROOT
from shared_world import SharedWorld

from erasure_lightning.concepts.worlds import World

#: Shift and scale of the latents that the transformer was trained on.
LATENTS = {"scaling_factor": 0.4678, "shift_factor": -0.497}


class TestWorld(SharedWorld):
    name = "emoji-world-flux"
    root = ROOT
    shared: ClassVar = {
        "pipeline/vae/diffusion_pytorch_model.safetensors": "411d666c4750fd49",
        "pipeline/text_encoder/model.safetensors": "401b49e5db49e0c1",
        "pipeline/tokenizer/tokenizer.json": "05a5262470807c27",
        "pipeline/tokenizer/tokenizer_config.json": "e77122351ac60ce3",
    }
    sampling = (20, 3.5, 64)
    options: ClassVar = {"max_sequence_length": 16}  # of T5, as in training

    def test_pipeline_is_the_stock_one(
        self, world: World, pipeline: FluxPipeline, tmp_path: Path
    ) -> None:
        shutil.copytree(world.pipeline, tmp_path, dirs_exist_ok=True)
        for name in ("vae", "text_encoder", "tokenizer"):
            shutil.copytree(world.component(name), tmp_path / name)
        config = json.loads((tmp_path / "vae/config.json").read_text(encoding="utf-8"))
        (tmp_path / "vae/config.json").write_text(json.dumps(config | LATENTS), encoding="utf-8")
        stock = FluxPipeline.from_pretrained(tmp_path, dtype=torch.float32)
        self.check_stock(pipeline, stock, ("transformer", "vae", "text_encoder", "text_encoder_2"))
        assert {key: pipeline.vae.config[key] for key in LATENTS} == LATENTS

    def test_prompts_are_as_long_as_in_training(self, pipeline: FluxPipeline) -> None:
        assert pipeline.tokenizer.model_max_length == 32
        assert pipeline.tokenizer_2.model_max_length == 16


@pytest.mark.parametrize("file", ["LICENSE", "README.md"])
def test_paperwork_of_a_checkout(file: str) -> None:
    assert (Path(__file__).parents[1] / file).read_text(encoding="utf-8").strip()
