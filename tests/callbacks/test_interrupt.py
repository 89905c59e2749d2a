import os
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from lightning.pytorch.callbacks import Timer

from erasure_lightning.__main__ import main
from erasure_lightning.callbacks.edit_export import ExportEdit
from erasure_lightning.callbacks.edit_validation import EditValidation
from erasure_lightning.callbacks.interrupt import Interrupted, LastCheckpoint
from erasure_lightning.edits.edit import read_edit
from erasure_lightning.errors import ErasureError
from erasure_lightning.files import writing
from erasure_lightning.runs.csv_log import read_metrics

#: The step after which something happens, behind a saved state and before more steps.
CUT = 5
STEPS = 8


def config(method):
    concepts = [{"name": "cat", "anchor": "dog"}]
    bank = {"class_path": "TrajectoryBank", "init_args": {"trajectories": 2, "steps": 3}}
    trainer = {
        "max_steps": STEPS,
        "accelerator": "cpu",
        "log_every_n_steps": 1,
        "enable_progress_bar": False,
    }
    settings = {
        "concepts": concepts,
        "backbone": "TinyBackbone",
        "lr": 1e-3,
        "warmup": 3,
        "latents": bank,
    }
    model = {"class_path": method, "init_args": settings}
    return {
        "model": model,
        "trainer": trainer,
        "data": {"batch_size": 2},
        "measure": False,
        "save_every": 3,
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with two runs that nobody disturbed."""
    root = tmp_path_factory.mktemp("runs")
    for name, method in {"plain": "trivial.Distillation", "sage": "SAGE"}.items():
        (root / f"{name}.yaml").write_text(yaml.safe_dump(config(method)))
        assert (
            main(["fit", "--config", str(root / f"{name}.yaml"), "--run_dir", str(root / name)])
            == 0
        )
    return root


def elsewhere(command):
    """The exit code of a command in a process of its own, which may die."""
    child = os.fork()
    if child == 0:
        os.environ.pop("ERASURE_RUN_DIR", None)
        os._exit(main(command))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def check_resumed(folder, whole, name):
    """Resume a run, and compare it with one that was not disturbed."""
    assert not (folder / name / "edit.safetensors").exists()
    assert main(["fit", "--ckpt_path", str(folder / name)]) == 0
    one, other = (read_edit(folder / run / "edit.safetensors").tensors for run in (whole, name))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert (folder / name / "metrics.csv").read_text() == (
        folder / whole / "metrics.csv"
    ).read_text()


def test_a_killed_run_resumes_bit_for_bit(folder, monkeypatch):
    with monkeypatch.context() as patched:
        at(CUT, patched, lambda: os.kill(os.getpid(), signal.SIGKILL))
        command = ["fit", "--config", str(folder / "plain.yaml")]
        code = elsewhere([*command, "--run_dir", str(folder / "killed")])
    assert code == -signal.SIGKILL
    assert (folder / "killed" / "checkpoints" / "last.ckpt").exists()
    check_resumed(folder, "plain", "killed")


def test_a_kill_between_saving_a_step_and_logging_it_loses_no_row(folder, monkeypatch):
    save, run = LastCheckpoint.on_train_batch_end, folder / "between"

    def save_and_die(keeper, trainer, *rest):
        save(keeper, trainer, *rest)
        if trainer.global_step == 6:
            os._exit(9)

    with monkeypatch.context() as patched:
        patched.setattr(LastCheckpoint, "on_train_batch_end", save_and_die)
        assert (
            elsewhere(["fit", "--config", str(folder / "plain.yaml"), "--run_dir", str(run)]) == 9
        )
    assert (run / "checkpoints" / "next.ckpt").exists()
    check_resumed(folder, "plain", run.name)


def test_a_checkpoint_of_a_killed_run_does_not_outlive_the_run(folder):
    run = folder / "left"
    command = ["fit", "--config", str(folder / "plain.yaml"), "--run_dir", str(run)]
    (run / "checkpoints").mkdir(parents=True)
    (run / "checkpoints" / "next.ckpt").write_bytes(b"of the killed run")
    assert main([*command, "--save_every", "100"]) == 0
    assert list((run / "checkpoints").iterdir()) == []


@pytest.mark.parametrize("whole", ["plain", "sage"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_says_how_to_go_on(folder, whole, number, code, monkeypatch, capsys):
    def raise_signal(callback, trainer, *rest):
        if trainer.global_step == CUT:
            signal.raise_signal(number)

    name = f"{whole}-{code}"
    with monkeypatch.context() as patched:
        patched.setattr(EditValidation, "on_train_batch_end", raise_signal)
        assert (
            main(
                ["fit", "--config", str(folder / f"{whole}.yaml"), "--run_dir", str(folder / name)]
            )
            == code
        )
    output = capsys.readouterr().err.splitlines()
    assert output == [
        f"erasure: Interrupted after step {CUT} and saved; go on with `erasure fit --ckpt_path"
        f" {folder / name}`."
    ]
    check_resumed(folder, whole, name)


def test_an_interruption_in_the_last_step_waits_for_the_edit(folder, monkeypatch, capsys):
    with monkeypatch.context() as patched:
        at(STEPS, patched, lambda: signal.raise_signal(signal.SIGINT))
        assert (
            main(["fit", "--config", str(folder / "plain.yaml"), "--run_dir", str(folder / "late")])
            == 130
        )
    assert (
        "Interrupted after the last step; the edit is written. Measure it with"
        in capsys.readouterr().err
    )
    assert (folder / "late" / "edit.safetensors").read_bytes() == (
        folder / "plain" / "edit.safetensors"
    ).read_bytes()


@pytest.mark.parametrize("method", ["RealEra", "SPM", "MACE", "SDD"])
def test_a_kill_behind_the_last_step_and_before_the_edit(folder, method, tmp_path, monkeypatch):
    """What methods and callbacks do when training ends, they do in the resumed run."""
    settings = config(method)
    settings["trainer"]["max_steps"] = 4
    settings["trainer"]["callbacks"] = [
        {"class_path": "RetentionMonitor", "init_args": {"every": 2, "count": 2, "steps": 2}}
    ]
    (tmp_path / "given.yaml").write_text(yaml.safe_dump(settings | {"save_every": 2}))
    fit = ["fit", "--config", str(tmp_path / "given.yaml"), "--run_dir"]
    assert main([*fit, str(tmp_path / "whole")]) == 0
    with monkeypatch.context() as patched:
        patched.setattr(ExportEdit, "on_fit_end", lambda *_: os._exit(9))
        assert elsewhere([*fit, str(tmp_path / "killed")]) == 9
    assert main(["fit", "--ckpt_path", str(tmp_path / "killed")]) == 0
    one, other = (tmp_path / name / "edit.safetensors" for name in ("whole", "killed"))
    assert one.read_bytes() == other.read_bytes()


def test_a_run_that_stopped_on_its_goal_stops_there_again(folder, tmp_path, monkeypatch):
    settings = config("trivial.Distillation")
    looks = {"every": 2, "steps": 2, "goal": 0.0}
    settings["trainer"]["callbacks"] = [{"class_path": "RetentionMonitor", "init_args": looks}]
    (tmp_path / "given.yaml").write_text(yaml.safe_dump(settings | {"save_every": 1}))
    fit = ["fit", "--config", str(tmp_path / "given.yaml"), "--run_dir"]
    with monkeypatch.context() as patched:
        patched.setattr(ExportEdit, "on_fit_end", lambda *_: os._exit(9))
        assert elsewhere([*fit, str(tmp_path / "killed")]) == 9
    assert main(["fit", "--ckpt_path", str(tmp_path / "killed")]) == 0
    assert len(read_metrics(tmp_path / "killed" / "metrics.csv")) == 2


def test_gradients_that_add_up_are_not_cut(folder, tmp_path, monkeypatch):
    settings = config("trivial.Distillation")
    settings["trainer"] |= {"accumulate_grad_batches": 3, "max_steps": 3}
    (tmp_path / "given.yaml").write_text(yaml.safe_dump(settings))
    fit, seen = ["fit", "--config", str(tmp_path / "given.yaml"), "--run_dir"], []
    assert main([*fit, str(tmp_path / "whole")]) == 0

    def inside(callback, trainer, *rest):
        seen.append(trainer.global_step)
        if seen == [0, 0, 1, 1]:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patched:
        patched.setattr(EditValidation, "on_train_batch_end", inside)
        assert main([*fit, str(tmp_path / "cut")]) == 143
    check_resumed(tmp_path, "whole", "cut")


@pytest.fixture(scope="module")
def stopped(folder):
    """A run that was interrupted after `CUT` steps."""
    with pytest.MonkeyPatch.context() as patched:
        at(CUT, patched, lambda: signal.raise_signal(signal.SIGINT))
        command = ["fit", "--config", str(folder / "plain.yaml")]
        assert main([*command, "--run_dir", str(folder / "stopped")]) == 130
    return folder / "stopped"


def test_a_run_that_has_all_its_steps_is_not_gone_on_with(stopped, capsys):
    short = ["--ckpt_path", str(stopped), "--trainer.max_steps", str(CUT)]
    assert main(["fit", *short]) == 2
    assert f"has taken {CUT} steps, and --trainer.max_steps is {CUT}." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "named"),
    [
        (("--model.concepts", "[{name: star, anchor: dog}]"), "concepts"),
        (("--model.concepts", "[{name: cat, anchor: dog}, {name: star, anchor: dog}]"), "concepts"),
        (("--model.lr", "0.5"), "lr"),
    ],
)
def test_what_a_checkpoint_holds_the_state_of_is_not_changed(stopped, capsys, option, named):
    """Trajectories are of the old concepts, and the optimizer's state has the old rate."""
    assert main(["fit", "--ckpt_path", str(stopped), *option]) == 2
    assert f"needs its own {named}, which last.ckpt holds the state of" in capsys.readouterr().err


def test_another_argument_of_a_source_of_latents_is_a_warning(stopped, tmp_path, capsys):
    run = ["--ckpt_path", str(stopped), "--run_dir", str(tmp_path)]
    assert main(["fit", *run, "--model.latents.init_args.steps", "7"]) == 0
    assert "latents.steps 7 (checkpoint: 3)" in capsys.readouterr().err


def test_a_second_signal_stops_at_once():
    keeper = LastCheckpoint()
    with keeper.watching():
        keeper.on_train_start(SimpleNamespace(global_step=0), None)
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(Interrupted, match="Interrupted at once") as caught:
            signal.raise_signal(signal.SIGINT)
    assert caught.value.exit_code == 130


def test_a_signal_outside_training_stops_at_once():
    before = signal.getsignal(signal.SIGTERM)
    with LastCheckpoint().watching(), pytest.raises(Interrupted) as caught:
        signal.raise_signal(signal.SIGTERM)
    assert caught.value.exit_code == 143
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize(
    ("there", "command"),
    [
        ([], ""),
        (["checkpoints/last.ckpt"], "fit"),
        (["checkpoints/last.ckpt", "edit.safetensors"], "test"),
        (["edit.safetensors", "metrics.json"], ""),
    ],
)
def test_an_interruption_at_once_says_how_to_go_on(tmp_path, there, command):
    for name in there:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    keeper, connector = LastCheckpoint(), SimpleNamespace(register_signal_handlers=lambda: None)
    keeper.listen_in(SimpleNamespace(_signal_connector=connector, default_root_dir=str(tmp_path)))
    with keeper.watching(), pytest.raises(Interrupted) as caught:
        signal.raise_signal(signal.SIGINT)
    go_on = f" Go on with `erasure {command} --ckpt_path {tmp_path}`." if command else ""
    assert str(caught.value) == f"Interrupted at once; what was written before is untouched.{go_on}"


def test_saving_never_is_refused():
    with pytest.raises(ErasureError, match="--save_every of at least 1; found 0"):
        LastCheckpoint(0)


def at(step, monkeypatch, what):
    """Do something once a step has been taken, before it is saved."""
    monkeypatch.setattr(
        EditValidation,
        "on_train_batch_end",
        lambda _, trainer, *rest: trainer.global_step == step and what(),
    )


def fill(path, monkeypatch):
    """The device is full for whoever writes this file next."""
    new = writing.temporary_path
    full = new(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    full.symlink_to("/dev/full")
    monkeypatch.setattr(writing, "temporary_path", lambda p: full if p == path else new(p))


@pytest.mark.parametrize("name", ["checkpoints/next.ckpt", "cost.json", "edit.safetensors"])
def test_a_full_disk_leaves_the_last_good_state(folder, name, monkeypatch, capsys):
    run = folder / f"full-{Path(name).suffix}"
    with monkeypatch.context() as patched:
        at(CUT, patched, lambda: fill(run / name, patched))
        assert main(["fit", "--config", str(folder / "plain.yaml"), "--run_dir", str(run)]) == 2
    assert capsys.readouterr().err.splitlines() == [
        f"erasure: error: Could not write {run / name}: No space left on device. What was there"
        " before is untouched."
    ]
    assert not list(run.rglob(".*"))
    check_resumed(folder, "plain", run.name)


def test_a_full_disk_cuts_no_row(folder, monkeypatch, capsys):
    run = folder / "full-csv"
    log = run / "metrics.csv"

    def cut():
        log.write_bytes(log.read_bytes()[:-9])
        log.rename(run / "kept")
        log.symlink_to("/dev/full")

    with monkeypatch.context() as patched:
        at(CUT, patched, cut)
        assert main(["fit", "--config", str(folder / "plain.yaml"), "--run_dir", str(run)]) == 2
    (output,) = capsys.readouterr().err.splitlines()
    assert f"Could not write {log}: No space left on device." in output
    (run / "kept").rename(log)
    check_resumed(folder, "plain", run.name)


def test_two_runs_in_one_folder(folder, monkeypatch, capfd):
    """While one trains, another is refused; the first goes on as if nothing had been."""
    run, codes = folder / "shared", []

    def another():
        codes.append(
            elsewhere(["fit", "--config", str(folder / "plain.yaml"), "--run_dir", str(run)])
        )

    with monkeypatch.context() as patched:
        at(3, patched, another)
        assert main(["fit", "--config", str(folder / "plain.yaml"), "--run_dir", str(run)]) == 0
    assert codes == [2]
    (output,) = capfd.readouterr().err.splitlines()
    assert f"{run} is being written to by process {os.getpid()} on " in output
    assert (run / "edit.safetensors").read_bytes() == (
        folder / "plain" / "edit.safetensors"
    ).read_bytes()


def test_a_run_that_max_time_stops_says_so_and_how_to_go_on(folder, monkeypatch, capsys):
    check = Timer.on_train_batch_end

    def run_out(timer, trainer, *rest):
        timer._offset = 1e6 * (trainer.global_step == CUT)
        check(timer, trainer, *rest)

    command = ["fit", "--config", str(folder / "plain.yaml"), "--trainer.max_time", "01:00:00:00"]
    with monkeypatch.context() as patched:
        patched.setattr(Timer, "on_train_batch_end", run_out)
        assert main([*command, "--run_dir", str(folder / "timed")]) == 0
    go_on = (
        f"erasure fit --ckpt_path {folder / 'timed' / 'checkpoints' / 'last.ckpt'}"
        f" --run_dir {folder / 'timed-2'} --trainer.max_time null"
    )
    assert (
        f"--trainer.max_time stopped it after {CUT} of {STEPS} steps. Resume it from its last"
        f" checkpoint with `{go_on}`."
    ) in capsys.readouterr().out.splitlines()
    assert main(go_on.split()[1:]) == 0
    assert "max_time" not in capsys.readouterr().out  # it has all its steps
    one, other = (
        read_edit(folder / run / "edit.safetensors").tensors for run in ("plain", "timed-2")
    )
    assert all(torch.equal(one[key], other[key]) for key in one)
