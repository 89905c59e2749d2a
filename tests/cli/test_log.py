import shutil

import pytest
import wandb
from report_runs import make_run
from wandb_runs import OfflineRun

from erasure_lightning.__main__ import main


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run with an attack, whose folder is the working folder."""
    folder = make_run(tmp_path / "uce-cat", backbone="sd")
    monkeypatch.chdir(folder)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    (folder / "metrics.csv").unlink()
    return folder


def offline_run(folder):
    (logs,) = folder.glob("wandb/offline-run-*")
    return OfflineRun(logs)


def test_a_run_has_the_name_of_its_folder_from_within_it_too(run, capsys):
    assert main(["log", ".", "--logger", "wandb", "--offline"]) == 0
    logged = offline_run(run)
    assert logged.run.display_name == "uce-cat"
    assert "uce-cat" in logged.artifacts
    attack = run / "attacks" / "unlearndiffatk"
    assert offline_run(attack).run.display_name.startswith("uce-cat-")
    assert (attack / "wandb" / "artifacts").is_dir()  # not in the folder of the first
    assert "environment variables" not in capsys.readouterr().err


def test_a_session_that_began_in_another_folder_logs_here(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    wandb.setup(wandb.Settings(mode="offline"))
    monkeypatch.chdir(run)
    assert main(["log", ".", "--logger", "wandb", "--offline"]) == 0
    assert offline_run(run).run.display_name == "uce-cat"


def test_figures_and_images_of_a_later_test_are_logged(run):
    (run / "test").mkdir()
    for name in ("metrics.json", "samples"):
        shutil.move(run / name, run / "test" / name)
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    assert main(["log", ".", "--logger", "tensorboard"]) == 0
    (folder,) = run.glob("lightning_logs/*")
    events = reader.EventAccumulator(str(folder), size_guidance={"images": 0}).Reload()
    assert [point.value for point in events.Scalars("summary/generality")] == [0.25]
    assert {"samples/003-before", "samples/003-after"} <= set(events.Tags()["images"])
