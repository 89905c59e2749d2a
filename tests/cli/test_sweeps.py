import os
import subprocess
from pathlib import Path

import pytest
import yaml
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args
from wandb_runs import OfflineRun

from erasure_lightning.api.configs import SHIPPED

SWEEPS = sorted((SHIPPED / "sweeps").glob("*.yaml"))

#: In place of the shipped config's own, so that a draw takes seconds.
QUICK = """
model:
  class_path: SAGE
  init_args: {concepts: [{name: cat, anchor: dog}], backbone: TinyBackbone}
data: {others: 2, steps: 2, seeds: 2, batch_size: 2}
trainer: {max_steps: 2, accelerator: cpu, enable_progress_bar: false}
"""


def draw(parameters):
    """One value of each parameter, as W&B hands it to its agent."""
    return {
        name: {"value": rule["values"][0] if "values" in rule else (rule["min"] + rule["max"]) / 2}
        for name, rule in parameters.items()
    }


def command(sweep, drawn):
    """The command that `wandb agent` starts, made by W&B's functions (`Agent._command_run`)."""
    macros = create_sweep_command_args({"args": drawn}) | {"program": [sweep["program"]]}
    words = []
    for word in map(str, create_sweep_command(sweep["command"])):
        words += macros[word[2:-1]] if word.startswith("${") else [word]
    return words


@pytest.mark.slow
@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_a_draw_of_the_sweep_runs_as_the_agent_starts_it(
    path: Path, tmp_path, monkeypatch, erasure
):
    sweep = yaml.safe_load(path.read_text())
    words = command(sweep, draw(sweep["parameters"]))
    name = words[words.index("--config") + 1]
    assert (SHIPPED / name).is_file()
    (tmp_path / name).write_text(QUICK)
    for variable, value in {
        "MODE": "offline",
        "SWEEP_ID": "s1",
        "RUN_ID": "r1",
        "SILENT": "true",
    }.items():
        monkeypatch.setenv(f"WANDB_{variable}", value)
    monkeypatch.delenv(
        "WANDB_SERVICE", raising=False
    )  # an agent starts no run inside another's process
    monkeypatch.setenv("PATH", f"{erasure.parent}{os.pathsep}{os.environ['PATH']}")
    # The last word wins: as many steps as the sweep says would take minutes.
    subprocess.run([*words, "--trainer.max_steps=2"], cwd=tmp_path, check=True, timeout=200)
    (run,) = tmp_path.glob("runs/*-r1")
    (folder,) = run.glob("wandb/offline-run-*")
    offline = OfflineRun(folder)
    assert (offline.run.run_id, offline.run.sweep_id) == ("r1", "s1")
    assert offline.config["arguments"]["seed"] == sweep["parameters"]["model.seed"]["values"][0]
    assert sweep["metric"]["name"].removesuffix("_low") in {"overall"}


def test_there_are_sweeps_and_every_parameter_is_an_option():
    assert SWEEPS
    for path in SWEEPS:
        sweep = yaml.safe_load(path.read_text())
        assert sweep["command"][0] == "${program}"
        assert sweep["command"][-1] == "${args}"
        assert all(
            name.partition(".")[0] in ("model", "data", "trainer") for name in sweep["parameters"]
        )
