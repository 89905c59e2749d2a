"""The package has its own weights only; with the emoji world it is a whole FLUX pipeline."""

import hashlib
import json
import shutil
import subprocess
import sys
from importlib.metadata import distribution, entry_points
from pathlib import Path

import pytest
import torch
from diffusers import FluxPipeline
from erasure_lightning_emoji_world import ROOT as BASE
from erasure_lightning_emoji_world_flux import ROOT

from erasure_lightning.concepts.worlds import World, find_world
from erasure_lightning.metrics.scorer import Scorer

#: What it shares with the emoji world, and the first digits of the SHA-256 of what it was trained
#: with.
SHARED = {
    "pipeline/vae/diffusion_pytorch_model.safetensors": "411d666c4750fd49",
    "pipeline/text_encoder/model.safetensors": "401b49e5db49e0c1",
    "pipeline/tokenizer/tokenizer.json": "05a5262470807c27",
    "pipeline/tokenizer/tokenizer_config.json": "e77122351ac60ce3",
}
#: Shift and scale of the latents that the transformer was trained on.
LATENTS = {"scaling_factor": 0.4678, "shift_factor": -0.497}
THINGS = ["panda", "key", "rainbow", "red apple", "hamburger", "frog", "cigarette", "guitar"]


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any connection is a failure: the world is all on disk."""

    def refuse(*_: object) -> None:
        raise AssertionError("the world asked for the network")

    monkeypatch.setattr("socket.socket.connect", refuse)


@pytest.fixture(scope="module")
def world() -> World:
    world = find_world("emoji-world-flux")
    assert world is not None
    return world


@pytest.fixture(scope="module")
def pipeline(world: World) -> FluxPipeline:
    loaded = world.load_pipeline()
    loaded.set_progress_bar_config(disable=True)
    return loaded


def test_entry_point_gives_the_folder() -> None:
    (entry,) = entry_points(group="erasure_lightning.worlds", name="emoji-world-flux")
    assert entry.load() == ROOT


def test_package_needs_the_emoji_world_that_it_was_trained_with() -> None:
    (need,) = distribution("erasure-lightning-emoji-world-flux").requires or ()
    assert need.startswith("erasure-lightning-emoji-world")
    assert "<" in need


def test_import_brings_no_library() -> None:
    code = (
        "import sys, erasure_lightning_emoji_world_flux; sys.exit('torch' in sys.modules or 'numpy'"
        " in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_vocabulary_is_the_emoji_world_s(world: World) -> None:
    base = find_world("emoji-world")
    assert base is not None
    assert (world.labels, world.styles, world.captions) == (base.labels, base.styles, base.captions)
    assert (world.steps, world.guidance, world.size) == (20, 3.5, 64)
    assert world.scorer == base.scorer


def test_each_component_lies_in_one_place(world: World) -> None:
    index = json.loads((ROOT / "pipeline/model_index.json").read_text(encoding="utf-8"))
    names = [name for name, kind in index.items() if isinstance(kind, list) and kind[0]]
    assert len(names) == 7
    for name in names:
        shared = f"pipeline/{name}" in world.parts
        own = (ROOT / "pipeline" / name).is_dir()
        assert shared is not own
        assert world.component(name).is_dir()


@pytest.mark.parametrize("file", SHARED)
def test_shared_files_are_those_it_was_trained_with(file: str) -> None:
    assert hashlib.sha256((BASE / file).read_bytes()).hexdigest().startswith(SHARED[file])


def test_pipeline_is_the_stock_one(world: World, pipeline: FluxPipeline, tmp_path: Path) -> None:
    shutil.copytree(world.pipeline, tmp_path, dirs_exist_ok=True)
    for name in ("vae", "text_encoder", "tokenizer"):
        shutil.copytree(world.component(name), tmp_path / name)
    config = json.loads((tmp_path / "vae/config.json").read_text(encoding="utf-8"))
    (tmp_path / "vae/config.json").write_text(json.dumps(config | LATENTS), encoding="utf-8")
    stock = FluxPipeline.from_pretrained(tmp_path, dtype=torch.float32)
    assert type(pipeline) is type(stock)
    for name in ("transformer", "vae", "text_encoder", "text_encoder_2"):
        values = pipeline.components[name].state_dict()
        expected = stock.components[name].state_dict()
        assert values.keys() == expected.keys()
        assert all(torch.equal(values[key], expected[key]) for key in expected)
    assert {key: pipeline.vae.config[key] for key in LATENTS} == LATENTS
    assert torch.equal(_image(pipeline, 0), _image(stock, 0))
    assert not torch.equal(_image(stock, 0), _image(stock, 1))


def _image(pipeline: FluxPipeline, seed: int) -> torch.Tensor:
    """An image of three steps; T5 sees as many tokens as it was trained on."""
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(
        "a dog",
        height=64,
        width=64,
        num_inference_steps=3,
        guidance_scale=3.5,
        max_sequence_length=pipeline.tokenizer_2.model_max_length,
        generator=torch.Generator().manual_seed(seed),
        output_type="pt",
    ).images


def test_prompts_are_as_long_as_in_training(pipeline: FluxPipeline) -> None:
    assert pipeline.tokenizer.model_max_length == 32
    assert pipeline.tokenizer_2.model_max_length == 16


def test_pipeline_can_be_written_whole(pipeline: FluxPipeline, tmp_path: Path) -> None:
    pipeline.save_pretrained(tmp_path)
    again = FluxPipeline.from_pretrained(tmp_path, dtype=torch.float32)
    assert torch.equal(_image(pipeline, 0), _image(again, 0))


def test_what_it_draws_is_recognised(world: World, pipeline: FluxPipeline) -> None:
    scorer = Scorer.load(world.scorer)
    images = pipeline(
        [f"a {thing}" for thing in THINGS],
        height=world.size,
        width=world.size,
        num_inference_steps=world.steps,
        guidance_scale=world.guidance,
        max_sequence_length=16,
        generator=[torch.Generator().manual_seed(0) for _ in THINGS],
        output_type="pt",
    ).images
    names = [label.name for label in world.labels]
    near = scorer.images(images) @ scorer.texts([f"a {name}" for name in names]).T
    assert [names[i] for i in near.argmax(dim=1)] == THINGS


def test_files_are_weights_and_text_only() -> None:
    suffixes = {path.suffix for path in (ROOT / "pipeline").rglob("*") if path.is_file()}
    assert suffixes == {".safetensors", ".json"}
    assert {path.suffix for path in ROOT.glob("*.*")} == {".py", ".typed", ".json", ".md"}


def test_attributions_are_the_emoji_world_s() -> None:
    ours, base = ((root / "NOTICES.md").read_text(encoding="utf-8") for root in (ROOT, BASE))
    assert ours[ours.index("Whoever passes on") :] == base[base.index("Whoever passes on") :]


@pytest.mark.parametrize("file", ["LICENSE", "README.md"])
def test_paperwork_of_a_checkout(file: str) -> None:
    assert (Path(__file__).parents[1] / file).read_text(encoding="utf-8").strip()
