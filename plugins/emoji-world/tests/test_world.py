"""The package holds what it promises, and all of it loads without a network."""

import hashlib
import json
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from erasure_lightning_emoji_world import ROOT
from safetensors.torch import load_file
from transformers import AutoTokenizer, VisionTextDualEncoderModel

WORKS = [
    ("Noto Emoji", "Google Inc.", "Apache-2.0"),
    ("Noto Emoji, first edition", "Google Inc.", "Apache-2.0"),
    ("Twitter Emoji, Twemoji", "Twitter, Inc. and contributors", "CC BY 4.0"),
    ("Fluent UI Emoji", "Microsoft Corporation", "MIT"),
    ("Fluent UI Emoji Flat", "Microsoft Corporation", "MIT"),
    ("Emoji One, colored", "Emoji One", "CC BY 4.0"),
    ("emojibase-data 17.0.0, emojilib 4.0.3", "Miles Johnson; Mu-An Chiou", "MIT"),
    ("CLIP's byte-pair merges", "OpenAI", "MIT"),
    ("all-MiniLM-L6-v2", "sentence-transformers", "Apache-2.0"),
    ("WordNet 3.1 database files", "Princeton University", "WordNet licence"),
]


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any connection is a failure: the world is all on disk."""

    def refuse(*_: object) -> None:
        raise AssertionError("the world asked for the network")

    monkeypatch.setattr("socket.socket.connect", refuse)


def test_entry_point_gives_the_folder() -> None:
    (entry,) = entry_points(group="erasure_lightning.worlds", name="emoji-world")
    assert entry.load() == ROOT


def test_import_brings_no_library() -> None:
    code = (
        "import sys, erasure_lightning_emoji_world; sys.exit('torch' in sys.modules or 'numpy' in"
        " sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_pipeline_samples_in_float32() -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(ROOT / "pipeline", dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline.unet.dtype == pipeline.vae.dtype == pipeline.text_encoder.dtype == torch.float32
    assert pipeline.tokenizer.model_max_length == 32
    image = pipeline("a dog", num_inference_steps=2, guidance_scale=4.0).images[0]
    assert image.size == (64, 64)


def test_scorer_puts_both_sides_in_one_space() -> None:
    scorer = VisionTextDualEncoderModel.from_pretrained(ROOT / "scorer", dtype=torch.float32)
    tokens = AutoTokenizer.from_pretrained(ROOT / "scorer")(
        ["a dog", "a cat"], padding=True, return_tensors="pt"
    )
    with torch.no_grad():
        text = scorer.text_projection(scorer.text_model(**tokens).pooler_output)
        image = scorer.visual_projection(
            scorer.vision_model(torch.zeros(2, 3, 64, 64)).pooler_output.flatten(1)
        )
    assert text.shape == image.shape == (2, 384)
    assert text.dtype == image.dtype == torch.float32


def test_scorer_is_the_one_that_was_trained() -> None:
    """Its text tower lies in the pipeline; together they are, to the bit, what one file held."""
    scorer = VisionTextDualEncoderModel.from_pretrained(ROOT / "scorer", dtype=torch.float32)
    hashed = hashlib.sha256()
    for name, value in sorted(scorer.state_dict().items()):
        hashed.update(name.encode() + value.numpy().tobytes())
    assert hashed.hexdigest().startswith("a4acbf54134b44fe")


def test_each_weight_is_shipped_once() -> None:
    values = [value for file in ROOT.rglob("*.safetensors") for value in load_file(file).values()]
    large = [value.numpy().tobytes() for value in values if value.numel() > 1000]
    assert len(large) == len(set(large)) > 100


def test_files_are_weights_and_text_only() -> None:
    suffixes = {
        path.suffix
        for part in ("pipeline", "scorer")
        for path in (ROOT / part).rglob("*")
        if path.is_file()
    }
    assert suffixes == {".safetensors", ".json"}
    assert {path.suffix for path in ROOT.glob("*.*")} == {".py", ".typed", ".json", ".md"}


def test_labels() -> None:
    content = json.loads((ROOT / "labels.json").read_text(encoding="utf-8"))
    assert len({row["label"] for row in content["labels"]}) == len(content["labels"]) == 165
    assert content["styles"] == ["noto", "twemoji", "fluent", "flat"]
    assert content["sampling"] == {"steps": 20, "guidance": 4.0, "size": 64}
    assert all("{}" in caption for caption in content["captions"]["label"])
    assert all(
        "{thing}" in caption and "{style}" in caption for caption in content["captions"]["style"]
    )


@pytest.mark.parametrize(("work", "holder", "licence"), WORKS)
def test_attributions(work: str, holder: str, licence: str) -> None:
    notices = (ROOT / "NOTICES.md").read_text(encoding="utf-8").splitlines()
    assert any(
        row.startswith(f"| {work} ") and f"| {holder} | {licence} |" in row for row in notices
    )


@pytest.mark.parametrize("file", ["LICENSE", "README.md"])
def test_paperwork_of_a_checkout(file: str) -> None:
    assert (Path(__file__).parents[1] / file).read_text(encoding="utf-8").strip()


def test_concepts_are_put_into_these_sentences_in_this_order() -> None:
    templates = json.loads((ROOT / "labels.json").read_text())["templates"]
    assert templates == {
        "thing": [
            "{}",
            "a {}",
            "the {}",
            "a photo of a {}",
            "a picture of a {}",
            "an image of a {}",
            "a drawing of a {}",
            "an emoji of a {}",
            "a small {}",
            "a close-up of a {}",
        ],
        "style": [
            "{thing}, {} style",
            "a {thing}, {} style",
            "the {thing}, {} style",
            "a {thing} in {} style",
            "a {thing} in the style of {}",
            "a {} style emoji of a {thing}",
            "a {} style picture of a {thing}",
            "a {} style drawing of a {thing}",
        ],
    }
