"""``configs/slurm/fit.sbatch``, with commands in SLURM's place that write down how they were
called.
"""

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "configs" / "slurm" / "fit.sbatch"
WHERE = "--trainer.num_nodes 2 --trainer.devices 4"
SLURM = {"SLURM_NNODES": "2", "SLURM_NTASKS_PER_NODE": "4", "SLURM_JOB_ID": "7"}


@pytest.fixture
def job(tmp_path):
    """Runs the script on the run ``my run``; its code, and how SLURM was called."""
    for name, code in (("srun", "exit $CODE"), ("scontrol", "exit 0")):
        command = tmp_path / name
        command.write_text(f'#!/bin/bash\necho "{name} $*" >> {tmp_path}/calls\n{code}\n')
        command.chmod(0o755)

    def run(code=0):
        slurm = {**SLURM, "CODE": str(code)}
        (tmp_path / "calls").write_text("")
        argv = ["bash", str(SCRIPT), "my run", "--config", "sage.yaml"]
        path = f"{tmp_path}:{os.environ['PATH']}"
        ended = subprocess.run(argv, cwd=tmp_path, env={**slurm, "PATH": path}, check=False)
        return ended.returncode, (tmp_path / "calls").read_text().splitlines()

    return run


@pytest.fixture
def run(tmp_path):
    """The run's folder."""
    folder = tmp_path / "my run"
    folder.mkdir()
    return folder


def test_a_new_run_is_fitted(job):
    assert job() == (
        0,
        [f"srun --kill-on-bad-exit=1 erasure fit --run_dir my run --config sage.yaml {WHERE}"],
    )


def test_a_run_whose_time_is_up_is_queued_again_and_one_that_failed_is_not(job):
    code, calls = job(143)
    assert (code, calls[1:]) == (143, ["scontrol requeue 7"])
    code, calls = job(2)
    assert (code, calls[1:]) == (2, [])


def test_an_unfinished_run_goes_on(job, run):
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / "last.ckpt").touch()
    _, (call,) = job()
    assert (
        "erasure fit --run_dir my run --config sage.yaml --ckpt_path my run/checkpoints/last.ckpt"
        f" {WHERE}" in call
    )


@pytest.mark.parametrize("where", [".", "test", "test-2"])
def test_a_run_with_figures_is_finished(job, run, where):
    (run / "edit.safetensors").touch()
    (run / where).mkdir(exist_ok=True)
    (run / where / "metrics.json").touch()
    assert job() == (0, [])


def test_an_edit_without_figures_is_measured_in_a_job_of_its_own(job, run):
    (run / "edit.safetensors").touch()
    (run / "config.yaml").write_text("hang_timeout: 1500.0\nmeasure: true\n")
    (run / "test").mkdir()
    measured = [f"srun --kill-on-bad-exit=1 erasure test --ckpt_path my run {WHERE}"]
    assert job() == (0, measured)
    assert job(143) == (
        143,
        measured,
    )  # cut short in the whole time of a job, it would be in every other


def test_an_edit_that_was_not_to_be_measured_is_finished(job, run):
    (run / "edit.safetensors").touch()
    (run / "config.yaml").write_text("hang_timeout: 1500.0\nmeasure: false\n")
    assert job() == (0, [])


@pytest.mark.parametrize(
    ("argv", "missing", "message"),
    [
        ([], None, "usage: sbatch --ntasks-per-node N fit.sbatch RUN_DIR"),
        (["my run"], "SLURM_NTASKS_PER_NODE", "give sbatch --ntasks-per-node N"),
        (["my run"], "SLURM_NNODES", "start this with sbatch"),
    ],
)
def test_a_missing_argument_is_named(argv, missing, message):
    known = {name: value for name, value in SLURM.items() if name != missing}
    env = {**known, "PATH": os.environ["PATH"]}
    ended = subprocess.run(["bash", str(SCRIPT), *argv], env=env, capture_output=True, text=True)
    assert ended.returncode
    assert message in ended.stderr
    assert "unbound" not in ended.stderr
