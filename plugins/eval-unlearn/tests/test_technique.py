"""An edit as a technique of eval-unlearn's published wheel, run by its own runner."""

import json
import logging

import pytest
import torch

from erasure_lightning import Concept, ErasureError, erase
from erasure_lightning.backbones.tiny import TinyBackbone
from erasure_lightning.methods.uce import UCE
from erasure_lightning.testing import quick_fit

eval_unlearn = pytest.importorskip("eval_unlearn", reason="needs `pip install eval-unlearn`")

FEW = {"num_inference_steps": 2, "guidance_scale": 3.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A base model's folder and a run's folder."""
    from diffusers import DiffusionPipeline

    folder = tmp_path_factory.mktemp("folder")
    TinyBackbone().to_pipeline().save_pretrained(folder / "base")
    pipeline = DiffusionPipeline.from_pretrained(folder / "base")
    edit = erase(pipeline, "cat", method="UCE", anchor="dog", progress_bar=False)
    edit.save(folder / "run" / "edit.safetensors")
    return folder


@pytest.fixture
def registry(monkeypatch):
    """Eval-unlearn's registry, with our entry point and a metric of our own."""
    from eval_unlearn import registry
    from eval_unlearn.types import Dataset, MetricResult

    class Count:
        """Counts images; the runner calls it as its own metrics."""

        def __init__(self, prompts):
            self.prompts = prompts
            self.sizes = []

        def load_dataset(self):
            return [Dataset([prompt], {"source": "ours"}) for prompt in self.prompts]

        def update(self, images, prompts, metadata):
            self.sizes += [image.size for image in images]

        def compute(self):
            return MetricResult("count", float(len(self.sizes)), {"sizes": self.sizes})

    registry.register_metric("count")(Count)
    return registry


def technique(folder, **arguments):
    from erasure_lightning_eval_unlearn.technique import EditTechnique

    return EditTechnique(
        edit=str(folder / "run"), model_id=str(folder / "base"), device="cpu", **(FEW | arguments)
    )


def test_its_runner_runs_an_edit(folder, registry, tmp_path, monkeypatch):
    from erasure_lightning_eval_unlearn.technique import EditTechnique
    from eval_unlearn.runners.single_benchmark_runner import SingleBenchmarkRunner

    registry.register_technique("erasure_lightning")(EditTechnique)
    runner = SingleBenchmarkRunner(
        technique_name="erasure_lightning",
        metric_name="count",
        technique_config={
            "edit": str(folder / "run"),
            "model_id": str(folder / "base"),
            "erase_concept": "cat",
            "an argument of later versions": 1,
            **FEW,
        },
        metric_config={"prompts": ["a cat", "a dog"]},
        output_dir=str(tmp_path),
        seed=0,
    )
    report = runner.run()
    assert report["erase_concept"] == "cat"
    assert report["metric_result"]["value"] == 2.0
    assert len(list(tmp_path.rglob("*.png"))) == 2
    assert any(json.loads(path.read_text()) for path in tmp_path.rglob("*.json"))


def test_the_images_are_those_of_the_edited_pipeline(folder):
    """The controls: at strength 0 they are the original's; another seed generates another image."""
    from diffusers import DiffusionPipeline

    pipeline = DiffusionPipeline.from_pretrained(folder / "base", safety_checker=None)
    noise = torch.Generator().manual_seed(4)
    original = pipeline("a cat", generator=noise, **FEW).images[0].tobytes()
    edited = technique(folder).generate(["a dog", "a cat"], seed=3)[1].tobytes()
    weak = technique(folder, strength=0.0)
    assert weak.generate(["a dog", "a cat"], seed=3)[1].tobytes() == original
    assert edited != original
    assert weak.generate(["a cat"], seed=5)[0].tobytes() != original
    assert weak.concept == "cat"


def test_an_edit_of_a_world_needs_no_model(tmp_path):
    """The XL world's pipeline has parts in another package's folder."""
    from erasure_lightning_eval_unlearn.technique import EditTechnique

    pytest.importorskip("erasure_lightning_emoji_world_xl")
    module = UCE(concepts=[Concept("guitar", "drum")], backbone="emoji-world-xl")
    quick_fit(module, 1).save_edit(tmp_path / "edit.safetensors")
    technique = EditTechnique(edit=str(tmp_path), device="cpu", **FEW)
    assert len(technique.generate(["a guitar"], seed=0)) == 1


def test_it_needs_an_edit():
    from erasure_lightning_eval_unlearn.technique import EditTechnique

    with pytest.raises(ErasureError, match="needs an edit; found none"):
        EditTechnique()


def test_its_entry_point_is_found(caplog):
    from importlib.metadata import entry_points

    if not [e for e in entry_points(group="eval_unlearn.techniques") if "lightning" in e.value]:
        pytest.skip("needs `pip install -e plugins/eval-unlearn`")
    from eval_unlearn.registry import get_technique
    from eval_unlearn.registry.entrypoints import load_entrypoints

    with caplog.at_level(logging.ERROR):
        load_entrypoints()
    assert get_technique("erasure_lightning").__name__ == "EditTechnique"
