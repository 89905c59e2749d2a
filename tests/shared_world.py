"""Tests of a world whose package has its own weights only, and all else of the emoji world."""

import hashlib
import json
import subprocess
import sys
from importlib.metadata import distribution, entry_points
from typing import ClassVar

import pytest
import torch
from erasure_lightning_emoji_world import ROOT as BASE

from erasure_lightning.concepts.worlds import find_world
from erasure_lightning.metrics.scorer import Scorer

THINGS = ["panda", "key", "rainbow", "red apple", "hamburger", "frog", "cigarette", "guitar"]


class SharedWorld:
    """Base of the tests of a world; its subclass sets the attributes.

    Args:
        name: Name of the world.
        root: Folder of the package.
        shared: Files of the emoji world, and the first digits of the SHA-256 of those that the
            weights were trained with.
        sampling: Default steps, guidance and size.
        options: Further arguments of the pipeline.
    """

    name: str
    root = BASE
    shared: dict[str, str]
    sampling: tuple[int, float, int]
    options: ClassVar = {}

    @pytest.fixture(autouse=True)
    def offline(self, monkeypatch):
        """Any connection is a failure: the world is all on disk."""

        def refuse(*_):
            raise AssertionError("the world needs the network")

        monkeypatch.setattr("socket.socket.connect", refuse)

    @pytest.fixture(scope="class")
    @classmethod
    def world(cls):
        world = find_world(cls.name)
        assert world is not None
        return world

    @pytest.fixture(scope="class")
    @classmethod
    def pipeline(cls, world):
        loaded = world.load_pipeline()
        loaded.set_progress_bar_config(disable=True)
        return loaded

    def images(self, pipeline, prompts, seed=0, steps=3, output_type="latent"):
        """Images, or latents, of prompts from the noise of one seed."""
        pipeline.set_progress_bar_config(disable=True)
        return pipeline(
            prompts,
            height=64,
            width=64,
            num_inference_steps=steps,
            guidance_scale=self.sampling[1],
            generator=[torch.Generator().manual_seed(seed) for _ in prompts],
            output_type=output_type,
            **self.options,
        ).images

    def check_stock(self, pipeline, stock, parts):
        """A stock pipeline has equal weights and draws equal images; a control: another seed."""
        assert type(pipeline) is type(stock)
        for name in parts:
            values = pipeline.components[name].state_dict()
            expected = stock.components[name].state_dict()
            assert values.keys() == expected.keys()
            assert all(torch.equal(values[key], expected[key]) for key in expected)
        ours, theirs = (self.images(each, ["a dog"]) for each in (pipeline, stock))
        assert torch.equal(ours, theirs)
        assert not torch.equal(ours, self.images(stock, ["a dog"], seed=1))

    def test_entry_point_gives_the_folder(self):
        (entry,) = entry_points(group="erasure_lightning.worlds", name=self.name)
        assert entry.load() == self.root

    def test_package_needs_the_emoji_world_that_it_was_trained_with(self):
        (need,) = distribution(f"erasure-lightning-{self.name}").requires or ()
        assert need.startswith("erasure-lightning-emoji-world")
        assert "<" in need

    def test_import_brings_no_library(self):
        module = f"erasure_lightning_{self.name.replace('-', '_')}"
        code = f"import sys, {module}; sys.exit(bool({{'torch', 'numpy'}} & set(sys.modules)))"
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

    def test_vocabulary_is_the_emoji_world_s(self, world):
        base = find_world("emoji-world")
        for attribute in ("labels", "styles", "captions", "scorer"):
            assert getattr(world, attribute) == getattr(base, attribute)
        assert (world.steps, world.guidance, world.size) == self.sampling

    def test_each_component_lies_in_one_place(self, world):
        index = json.loads((self.root / "pipeline/model_index.json").read_text(encoding="utf-8"))
        names = [name for name, kind in index.items() if isinstance(kind, list) and kind[0]]
        assert len(names) == 7
        for name in names:
            shared = f"pipeline/{name}" in world.parts
            own = (self.root / "pipeline" / name).is_dir()
            assert shared is not own
            assert world.component(name).is_dir()

    def test_shared_files_are_those_it_was_trained_with(self):
        for file, digest in self.shared.items():
            assert hashlib.sha256((BASE / file).read_bytes()).hexdigest().startswith(digest), file

    def test_pipeline_can_be_written_whole(self, pipeline, tmp_path):
        pipeline.save_pretrained(tmp_path)
        again = type(pipeline).from_pretrained(tmp_path, dtype=torch.float32)
        assert torch.equal(self.images(pipeline, ["a dog"]), self.images(again, ["a dog"]))

    def test_what_it_draws_is_recognised(self, world, pipeline):
        scorer = Scorer.load(world.scorer)
        prompts = [f"a {thing}" for thing in THINGS]
        images = self.images(pipeline, prompts, steps=world.steps, output_type="pt")
        names = [label.name for label in world.labels]
        near = scorer.images(images) @ scorer.texts([f"a {name}" for name in names]).T
        assert [names[i] for i in near.argmax(dim=1)] == THINGS

    def test_files_are_weights_and_text_only(self):
        suffixes = {path.suffix for path in (self.root / "pipeline").rglob("*") if path.is_file()}
        assert suffixes == {".safetensors", ".json"}
        assert {path.suffix for path in self.root.glob("*.*")} == {".py", ".typed", ".json", ".md"}

    def test_attributions_are_the_emoji_world_s(self):
        texts = [(root / "NOTICES.md").read_text(encoding="utf-8") for root in (self.root, BASE)]
        ours, base = (text[text.index("Whoever passes on") :] for text in texts)
        assert ours == base
