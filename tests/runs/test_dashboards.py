from pathlib import Path
from socket import gethostname
from types import SimpleNamespace

import pytest
from jsonargparse import Namespace
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from PIL import Image
from trivial import Redirection

from erasure_lightning.backbones.tiny import TinyBackbone
from erasure_lightning.callbacks.dashboard import Dashboard
from erasure_lightning.cli.loggers import set_up_loggers
from erasure_lightning.concepts.concept import Concept, Concepts
from erasure_lightning.errors import ErasureError
from erasure_lightning.runs.csv_log import MetricsFile
from erasure_lightning.runs.dashboard_content import show_samples
from erasure_lightning.runs.dashboards import (
    TensorBoardWriter,
    WandbWriter,
    close_loggers,
    dashboard_writers,
    wandb_arguments,
)
from erasure_lightning.runs.folder import Run
from erasure_lightning.runs.logger_session import check_account


class Recorder(WandbLogger):
    """Stands in for a connection."""

    def __init__(self):
        self.params = {}

    def log_hyperparams(self, params):
        self.params |= params


def begun(folder, rank):
    """The facts that a rank's board got."""
    logger = Recorder()
    module = Redirection(concepts=[Concept("cat", "dog")], backbone=TinyBackbone())
    module.configure_model()
    trainer = SimpleNamespace(
        loggers=[logger], global_step=0, is_global_zero=rank == 0, default_root_dir=folder
    )
    Dashboard().on_test_start(trainer, module)
    Dashboard().on_test_end(trainer, module)
    Dashboard().teardown(trainer, module, "fit")
    return logger.params


def test_only_the_first_rank_shows_anything(tmp_path):
    assert begun(tmp_path, 0)["concepts"] == "cat"
    assert begun(tmp_path, 1) == {}


def test_each_logger_gets_its_board(tmp_path):
    writers = dashboard_writers([MetricsFile(tmp_path), TensorBoardLogger(tmp_path), Recorder()], 3)
    assert [type(writer) for writer in writers] == [TensorBoardWriter, WandbWriter]


@pytest.mark.parametrize(
    ("options", "job", "variable", "id_"),
    [
        ({}, "fit", None, "b-2"),
        ({"id": "mine"}, "fit", None, "mine"),
        ({}, "fit", "theirs", None),
        ({}, "test", None, None),
        ({"save_dir": "elsewhere"}, "fit", None, None),
    ],
    ids=["resumed", "id", "variable", "test", "folder"],
)
def test_a_resumed_fit_continues_its_wandb_run(tmp_path, monkeypatch, options, job, variable, id_):
    if variable:
        monkeypatch.setenv("WANDB_RUN_ID", variable)
    defaults = {"id": None, "settings": None, "save_dir": None, "offline": True}
    options = Namespace(defaults | options)
    logger = Namespace(class_path="lightning.pytorch.loggers.WandbLogger", init_args=options)
    config = Namespace(
        trainer=Namespace(logger=logger),
        model=Namespace(
            class_path="UCE", init_args=Namespace(concepts=Concepts((Concept("cat"),)))
        ),
    )
    for name in ("run-20260102_000000-a1", "offline-run-20260103_000000-b-2", "artifacts"):
        (tmp_path / "wandb" / name).mkdir(parents=True)
    set_up_loggers(config, job, Run(tmp_path))
    assert options.get("id") == id_


def test_what_wandb_would_refuse_is_cut():
    concepts = [f"{'long ' * 40}{i}" for i in range(100)]
    arguments = wandb_arguments("SAGE", concepts, "fit", "run")
    assert len(arguments["group"]) <= 128
    assert all(1 <= len(tag) <= 64 for tag in arguments["tags"])


def test_closed_files_do_not_tell_the_host(tmp_path):
    logger = TensorBoardLogger(tmp_path)
    (writer,) = dashboard_writers([logger], 0)
    writer.log_summary({"overall": 0.5})
    assert [f for f in Path(logger.log_dir).glob("events*") if f".{gethostname()}." in f.name]
    close_loggers([logger])
    (file,) = Path(logger.log_dir).glob("events*")
    assert f".{gethostname()}." not in file.name


@pytest.mark.parametrize(
    ("before", "row", "problem"),
    [
        (100, "a cat,efficacy,0,a.png,a.png", "truncated"),
        (None, "a cat,efficacy,0,b.png,a.png", "No such file"),
        (None, "a cat,efficacy,0,../secret.png,a.png", "No such file"),
        (None, "a cat,efficacy,zero,a.png,a.png", "invalid literal"),
        (None, "a cat,efficacy", "NoneType"),
    ],
    ids=["truncated", "missing", "outside", "seed", "short"],
)
def test_images_that_cannot_be_read_are_an_error_of_ours(tmp_path, before, row, problem):
    run = Run(tmp_path / "run")
    run.samples.mkdir(parents=True)
    Image.effect_noise((16, 16), 9).save(run.samples / "a.png")
    Image.new("RGB", (4, 4)).save(run.root / "secret.png")
    (run.samples / "a.png").write_bytes((run.samples / "a.png").read_bytes()[:before])
    (run.samples / "samples.csv").write_text(f"prompt,group,seed,before,after\n{row}\n")
    with pytest.raises(ErasureError, match=f"needs images as `erasure test`.*{problem}.*Delete it"):
        show_samples(SimpleNamespace(), run)


@pytest.mark.parametrize(
    ("name", "accepted"), [("uce-café", "uce-caf"), ("日本", "edit"), ("a-cat_1.2", "a-cat_1.2")]
)
def test_an_artifact_has_a_name_that_wandb_accepts(tmp_path, name, accepted):
    artifacts = []
    logger = Recorder()
    logger._experiment = SimpleNamespace(log_artifact=artifacts.append)
    file = tmp_path / "edit.safetensors"
    file.write_bytes(b"edit")
    WandbWriter(logger, 0).log_edit(name, file, {})
    assert [artifact.name for artifact in artifacts] == [accepted]


def test_tensorboard_shows_a_config_that_is_logged_in_parts_at_one_step(tmp_path):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    logger = TensorBoardLogger(tmp_path)
    (writer,) = dashboard_writers([logger], 3)
    writer.log_config({"method": "UCE"})
    writer.log_config({"protocol": "95513fd7"})
    close_loggers([logger])
    events = reader.EventAccumulator(logger.log_dir).Reload()
    # TensorBoard's data server shows the last text of a name and a step alone.
    tags = events.Tags()["tensors"]
    shown = {events.Tensors(tag)[-1].tensor_proto.string_val[0].decode() for tag in tags}
    assert shown == {"UCE", "95513fd7"}


@pytest.mark.parametrize("cell", ["a | b", "two\nlines", "<script>alert(1)</script>"])
def test_a_cell_stays_in_its_cell(tmp_path, cell):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    logger = TensorBoardLogger(tmp_path)
    (writer,) = dashboard_writers([logger], 0)
    writer.log_table("t", ["prompt", "n"], [[cell, 1]])
    close_loggers([logger])
    (text,) = reader.EventAccumulator(logger.log_dir).Reload().Tensors("t/text_summary")
    lines = text.tensor_proto.string_val[0].decode().splitlines()
    assert len(lines) == 3
    assert lines[2].replace("\\|", "").count("|") == 4


def test_online_without_an_account_says_how_to_go_offline(monkeypatch):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setattr("wandb.login", lambda prompt: False)
    with pytest.raises(
        ErasureError,
        match="needs an API key to log online; found none.* --offline, or WANDB_MODE=off",
    ):
        check_account(False, "--offline")
    check_account(True, "--offline")
