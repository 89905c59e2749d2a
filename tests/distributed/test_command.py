"""Two processes on the CPU, as a user starts them."""

import json
import subprocess

import pytest
from edit_files import read_content
from trivial import TINY

from erasure_lightning.__main__ import main


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_processes_fit_measure_and_write_once(strategy, tmp_path, erasure):
    arguments = [
        "--trainer.devices",
        "2",
        "--trainer.strategy",
        strategy,
        "--trainer.accelerator",
        "cpu",
    ]
    command = [erasure, "fit", *TINY, *arguments, "--run_dir", tmp_path / "run"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Erased; the edit is in") == 1
    tensors, metadata = read_content(tmp_path / "run" / "edit.safetensors")
    assert tensors
    assert metadata["concepts"][0]["name"] == "cat"
    protocol = json.loads((tmp_path / "run" / "metrics.json").read_text())["protocol"]
    assert protocol["prompts"]["specificity"]


def test_other_devices_than_torchrun_has_started_are_refused(tmp_path, monkeypatch, capsys):
    for name, value in {
        "TORCHELASTIC_RUN_ID": "x",
        "LOCAL_WORLD_SIZE": "2",
        "GROUP_WORLD_SIZE": "1",
    }.items():
        monkeypatch.setenv(name, value)
    assert main(["fit", *TINY, "--run_dir", str(tmp_path), "--trainer.devices", "3"]) == 2
    assert (
        "torchrun has started 2 processes on this machine, and --trainer.devices is 3."
        in capsys.readouterr().err
    )


def test_every_process_that_torchrun_starts_refuses_by_itself(tmp_path, monkeypatch, capsys):
    """One that did not would wait for the others, and torchrun for it."""
    (tmp_path / "edit.safetensors").touch()
    monkeypatch.delenv("ERASURE_RUN_DIR", raising=False)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert main(["fit", *TINY, "--run_dir", str(tmp_path)]) == 2
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert main(["fit", *TINY, "--run_dir", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("holds a finished run") == 1
