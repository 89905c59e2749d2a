import inspect
from dataclasses import replace
from pathlib import Path
from pkgutil import resolve_name

import pytest
import yaml

from erasure_lightning.__main__ import main
from erasure_lightning.api.configs import SHIPPED, shipped_configs
from erasure_lightning.backbones.base import Backbone
from erasure_lightning.methods import METHODS
from erasure_lightning.registry import METHOD, find_offer
from erasure_lightning.training import base
from erasure_lightning.training.gradient import GradientErasure

#: Ours, and those of the plugins that are installed, but for those of parts.
CONFIGS = sorted(
    (
        path
        for path in shipped_configs().values()
        if "parts" not in yaml.safe_load(path.read_text())
    ),
    key=lambda path: path.name,
)

#: What makes latents cheap, by their class.
FEW = {
    "TrajectoryBank": {"trajectories": 2, "steps": 2},
    "GeneratedImages": {"images": 2, "steps": 2},
    "StochasticTrajectories": {"trajectories": 2, "steps": 3, "early": 1, "late": 1},
}

#: What makes a method cheap: more of them are more of the same.
FEW_OF_METHODS = {
    "maps", "remaining", "images", "rollout_steps", "inversion_steps", "domain_candidates"
}  # fmt: skip


def test_every_method_has_a_config():
    shipped = {
        yaml.safe_load(path.read_text())["model"]["class_path"]
        for path in CONFIGS
        if path.parent == SHIPPED
    }
    assert shipped >= set(METHODS)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_steps_are_counted_for_each_concept_where_there_is_a_gradient(path: Path):
    config = yaml.safe_load(path.read_text())
    method = resolve_name(find_offer(METHOD, config["model"]["class_path"]).class_path)
    trainer = {key: config["trainer"].get(key) for key in ("max_steps", "max_epochs")}
    if path.stem == "mace":  # whose fused adapters harm the rest with as many steps for each thing
        assert trainer == {"max_steps": 50, "max_epochs": None}
    elif issubclass(method, GradientErasure):
        assert config["data"]["steps_per_concept"] > 0
        assert trainer == {"max_steps": -1, "max_epochs": 1}
    else:
        assert trainer["max_steps"] == 1


def quick(value):
    """A config whose latents, in models and callbacks, are few and cheap."""
    if isinstance(value, list):
        return [quick(item) for item in value]
    if not isinstance(value, dict):
        return value
    value = {key: quick(item) for key, item in value.items()}
    if few := FEW.get(value.get("class_path")):
        value["init_args"] = value.get("init_args", {}) | few
    return value


@pytest.fixture
def few_words(monkeypatch):
    """Function that leaves of each world the labels that a text names, and few others."""
    read, words = base.load_backbone, Backbone.words
    monkeypatch.setattr(Backbone, "words", lambda self: words(self)[::100])

    def leave(text):
        def load(*arguments):
            model = read(*arguments)
            labels = model.world.labels
            named = [label for label in labels if label.name in text]
            model.world = replace(model.world, labels=(*named, *labels[::40]))
            return model

        monkeypatch.setattr(base, "load_backbone", load)

    return leave


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_runs(path: Path, tmp_path, monkeypatch, few_words):
    pytest.importorskip("erasure_lightning_emoji_world")
    text = path.read_text()
    few_words(text)
    config = quick(yaml.safe_load(text))
    method = resolve_name(find_offer(METHOD, config["model"]["class_path"]).class_path)
    for name in FEW_OF_METHODS & inspect.signature(method).parameters.keys():
        config["model"]["init_args"][name] = 2
    data = config.setdefault("data", {})
    data["batch_size"] = min(data.get("batch_size", 2), 2)
    (tmp_path / path.name).write_text(yaml.safe_dump(config))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    once = ["--trainer.fast_dev_run", "true", "--trainer.enable_progress_bar", "false"]
    argv = ["--config", str(tmp_path / path.name), "--trainer.accelerator", "cpu", *once]
    assert main(["fit", *argv]) == 0
    assert not list((tmp_path / "work").iterdir())
