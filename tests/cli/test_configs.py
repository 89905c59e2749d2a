import inspect
from pathlib import Path
from pkgutil import resolve_name

import pytest
import yaml

from erasure_lightning.__main__ import main
from erasure_lightning.cli.configs import SHIPPED, shipped_configs
from erasure_lightning.methods import METHODS
from erasure_lightning.registry import find_method
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
FEW = {"TrajectoryBank": ("trajectories", "steps"), "GeneratedImages": ("images", "steps")}


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
    method = resolve_name(find_method(config["model"]["class_path"]).class_path)
    trainer = {key: config["trainer"].get(key) for key in ("max_steps", "max_epochs")}
    if issubclass(method, GradientErasure):
        assert config["data"]["rounds"] > 0
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
        value["init_args"] = value.get("init_args", {}) | dict.fromkeys(few, 2)
    return value


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_runs(path: Path, tmp_path, monkeypatch):
    pytest.importorskip("erasure_lightning_emoji_world")
    config = quick(yaml.safe_load(path.read_text()))
    method = resolve_name(find_method(config["model"]["class_path"]).class_path)
    for name in {"maps", "remaining"} & inspect.signature(method).parameters.keys():
        config["model"]["init_args"][name] = 2
    (tmp_path / path.name).write_text(yaml.safe_dump(config))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    once = ["--trainer.fast_dev_run", "true", "--trainer.enable_progress_bar", "false"]
    argv = ["--config", str(tmp_path / path.name), "--trainer.accelerator", "cpu", *once]
    assert main(["fit", *argv]) == 0
    assert not list((tmp_path / "work").iterdir())
