"""Two processes on the CPU, as a user starts them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_cli import TINY

from erasure_lightning.edits import read_edit


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_processes_fit_measure_and_write_once(strategy, tmp_path):
    given = ["--trainer.devices", "2", "--trainer.strategy", strategy, "--trainer.accelerator", "cpu"]
    command = [sys.executable, "-m", "erasure_lightning", "fit", *TINY, *given, "--run_dir", str(tmp_path / "run")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent.parent)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Erased; the edit is in") == 1
    tensors, metadata = read_edit(tmp_path / "run" / "edit.safetensors")
    assert tensors
    assert metadata["concepts"][0]["name"] == "cat"
    protocol = json.loads((tmp_path / "run" / "metrics.json").read_text())["protocol"]
    assert protocol["prompts"]["specificity"]
