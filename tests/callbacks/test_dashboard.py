import getpass
import json
import os
import re
import shutil
import socket

import pytest
import wandb
import yaml
from edit_files import read_content
from tiny_scorers import save_scorer
from wandb_runs import OfflineRun, finished

from erasure_lightning.__main__ import main
from erasure_lightning.edits.edit import read_edit
from erasure_lightning.metrics.protocol import Result
from erasure_lightning.runs.dashboards import PRIVATE_SETTINGS

pytestmark = pytest.mark.slow

KEY = "planted-secret-" + "0123456789" * 4
PRIVATE_WORDS = {
    "home": "home-of-someone",
    "user": "someone-private",
    "key": KEY,
    "folder": "folder-of-someone",
}

CONFIG = """
model:
  class_path: trivial.Distillation
  init_args:
    concepts: [{name: cat, anchor: dog, domain: [kitten]}]
    backbone: TinyBackbone
    lr: 1e-3
data: {others: 3, steps: 2, seeds: 2, batch_size: 2}
trainer:
  max_steps: 4
  accelerator: cpu
  enable_progress_bar: false
  log_every_n_steps: 1
  logger: [{class_path: wandb, init_args: {offline: true}}, tensorboard]
  callbacks:
    - class_path: GlobalSemanticAlignment
      init_args: {prompts: [a dog, a bird, a fish], batch_size: 3}
    - class_path: RetentionMonitor
      init_args:
        every: 1
        steps: 2
        scorer: SCORER
        keep_best: false
        prompts: {pets: [a dog], birds: [a bird, an owl]}
    - class_path: Measure
      init_args: {scorer: SCORER}
"""


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """A working folder with private names for home and user, and a key in the environment."""
    folder = tmp_path_factory.mktemp("work") / PRIVATE_WORDS["folder"]
    (folder / PRIVATE_WORDS["home"]).mkdir(parents=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("HOME", str(folder / PRIVATE_WORDS["home"]))
        patch.setenv("WANDB_SILENT", "true")
        for name in ("WANDB_API_KEY", "OPENAI_API_KEY"):
            patch.setenv(name, KEY)
        for name in ("LOGNAME", "USER", "USERNAME"):
            patch.setenv(name, PRIVATE_WORDS["user"])
        patch.delenv("WANDB_MODE", raising=False)
        yield folder


@pytest.fixture(scope="module")
def run(workspace):
    """The folder of a run with both loggers."""
    scorer = save_scorer(workspace / "scorer")
    (workspace / "c.yaml").write_text(CONFIG.replace("SCORER", str(scorer)))
    with pytest.warns(UserWarning, match="edits no text encoder: it will stay at 0"):
        assert main(["fit", "--config", "c.yaml", "--run_dir", "tiny-cat"]) == 0
    return workspace / "tiny-cat"


@pytest.fixture(scope="module")
def logged(run):
    """The run that W&B wrote."""
    (folder,) = run.glob("wandb/offline-run-*")
    return OfflineRun(folder)


@pytest.fixture(scope="module")
def events(run):
    """The events that TensorBoard wrote."""
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    (folder,) = run.glob("lightning_logs/*")
    sizes = {"images": 0, "tensors": 0, "scalars": 0}
    return reader.EventAccumulator(str(folder), size_guidance=sizes).Reload()


# Weights & Biases


def test_runs_are_grouped_by_concept_and_job(logged):
    run = logged.run
    assert (run.project, run.run_group) == ("erasure", "cat")
    assert (run.job_type, run.display_name) == ("fit", "tiny-cat")
    assert list(run.tags) == ["Distillation", "cat"]


def test_the_config_describes_the_run(logged, run):
    config = logged.config
    assert (config["method"], config["concepts"], config["seed"]) == ("Distillation", "cat", 0)
    assert config["arguments"]["lr"] == 1e-3
    assert config["protocol"] == Result.load(run / "metrics.json").protocol.identity


@pytest.mark.parametrize(
    "name",
    [
        *("loss", "loss/erasure", "loss/global", "monitor/retained", "monitor/erased"),
        *("monitor/retained/pets", "monitor/retained/birds"),
    ],
)
def test_every_curve_is_there(logged, name):
    assert set(logged.curve(name)) >= {0, 1, 2, 3}


def test_groups_of_the_monitor_make_up_the_whole(logged):
    for step, value in logged.curve("monitor/retained").items():
        parts = [logged.curve(f"monitor/retained/{group}")[step] for group in ("pets", "birds")]
        assert value == pytest.approx((parts[0] + 2 * parts[1]) / 3, abs=1e-6)


def test_images_are_a_table_before_and_after(logged, run):
    columns, rows = logged.table("samples")
    assert columns == ["prompt", "group", "seed", "before", "after"]
    assert len(rows) == len(list(run.glob("samples/*-after.png"))) > 0
    assert rows[0][:3] == ["cat", "efficacy", 0]
    assert all(cell["_type"] == "image-file" for row in rows for cell in row[3:])


def test_figures_are_a_table_and_a_summary_with_intervals(logged, run):
    columns, rows = logged.table("figures")
    assert columns[:5] == ["group", "metric", "before mean", "before low", "before high"]
    result = Result.load(run / "metrics.json")
    assert len(rows) == sum(map(len, result.estimates.values()))
    for group in ("efficacy", "generality", "specificity"):
        values = [logged.summary[f"{group}{end}"] for end in ("", "_low", "_high")]
        assert values == pytest.approx(list(result.estimates[group]["recognized"]["after"][:3]))
    assert logged.summary["overall"] == pytest.approx(result.overall("after"))
    assert (
        logged.summary["overall_low"] <= logged.summary["overall"] <= logged.summary["overall_high"]
    )
    assert logged.summary["cost_steps"] == 4


def test_the_edit_is_an_artifact_that_loads(logged, run, workspace):
    artifact = logged.artifacts["tiny-cat"]
    assert artifact.type == "edit"
    assert '"method":"trivial.Distillation"' in artifact.metadata.replace(": ", ":")
    (content,) = artifact.manifest.contents
    tensors, metadata = read_content(workspace / content.local_path)
    assert tensors.keys() == read_edit(run / "edit.safetensors").tensors.keys()
    assert yaml.safe_load(metadata["config"])["model"]["class_path"] == "trivial.Distillation"


def test_the_grid_is_an_image(logged):
    assert list(logged.folder.glob("files/media/images/grid_*.png"))


def test_the_next_run_of_the_process_is_another(logged):
    assert wandb.run is None


def test_prediction_leaves_no_empty_run_behind(run, workspace):
    (workspace / "p.csv").write_text("prompt,evaluation_seed,case_number\na cat,1,1\n")
    predict = ["predict", "--ckpt_path", "tiny-cat", "--data.prompts", "p.csv"]
    assert main([*predict, "--run_dir", "drawn"]) == 0
    assert (workspace / "drawn" / "manifest.csv").is_file()
    assert not list((workspace / "drawn").glob("*/*offline*"))


# TensorBoard


def test_tensorboard_holds_the_same(events, run):
    tags = events.Tags()
    assert {"grid", "samples/000-before", "samples/000-after"} <= set(tags["images"])
    scalars = {"loss", "loss/global", "monitor/retained/pets", "summary/overall_low"}
    assert scalars <= set(tags["scalars"])
    texts = {tag.partition("/text_summary")[0]: tag for tag in tags["tensors"]}
    assert {"run/method", "run/protocol", "samples", "figures", "edit/tiny-cat"} <= set(texts)
    (figures,) = events.Tensors(texts["figures"])
    result = Result.load(run / "metrics.json")
    mean = result.estimates["specificity"]["image_text"]["after"].mean
    assert str(mean) in figures.tensor_proto.string_val[0].decode()


# privacy


def leaks(folder):
    """Kinds of private words in a folder of W&B's; paths of files to upload are not uploaded."""
    leaked = set()
    texts = []
    for file in filter(os.path.isfile, folder.rglob("*")):
        if file.suffix == ".wandb":
            for record in finished(file.parent):
                if record.HasField("artifact"):
                    for entry in record.artifact.manifest.contents:
                        entry.local_path = ""
                texts.append(str(record))
        else:
            content = file.read_bytes()
            leaked |= {kind for kind, word in PRIVATE_WORDS.items() if word.encode() in content}
            if file.suffix in {".json", ".txt", ".log", ".yaml"}:
                texts.append(content.decode())
    whole = "\n".join(texts)
    leaked |= {kind for kind, word in PRIVATE_WORDS.items() if word in whole}
    if re.search(rf"\b{re.escape(socket.gethostname())}\b", whole):
        leaked.add("host")
    return leaked


def test_no_private_word_is_logged(run):
    assert getpass.getuser() == PRIVATE_WORDS["user"]
    assert leaks(run / "wandb") == set()


def test_wandb_alone_logs_private_words(workspace):
    plain = wandb.init(mode="offline", dir=str(workspace), settings={"silent": True})
    plain.config.update({"key": os.environ["OPENAI_API_KEY"]})
    plain.finish()
    assert leaks(workspace / "wandb") >= {"host", "folder", "key"}


def test_tensorboard_does_not_contain_the_host(run):
    files = [file for file in (run / "lightning_logs").rglob("*") if file.is_file()]
    assert files
    for file in files:
        assert f".{socket.gethostname()}." not in file.name
        assert not [word for word in PRIVATE_WORDS.values() if word.encode() in file.read_bytes()]


def test_no_artifact_is_left_in_the_user_s_home(workspace, run):
    assert not list((workspace / PRIVATE_WORDS["home"]).rglob("artifacts"))


def test_settings_against_privacy_are_refused(workspace, capsys):
    argv = ["fit", "--config", "sage.yaml", "--model.backbone", "TinyBackbone"]
    argv += ["--trainer.logger", "wandb"]
    argv += ["--trainer.logger.settings", json.dumps({"api_key": KEY}), "--run_dir", "refused"]
    assert main(argv) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("erasure: error: The wandb logger needs its own settings")
    assert KEY not in message
    assert not (workspace / "refused").exists()


def test_wandb_has_the_private_settings():
    assert PRIVATE_SETTINGS.keys() <= wandb.Settings.model_fields.keys()


# afterwards


OUTCOME = {
    "attack": "Relearn",
    "class": "x.Relearn",
    "arguments": {"file": "/secret/folder-of-someone/list.csv"},
    "paper": "",
    "method": "Distillation",
    "concepts": ["cat"],
    "edit": "0" * 16,
    "success": {
        kind: {"mean": mean, "low": mean - 0.1, "high": mean + 0.1, "seeds": 3, "images": 9}
        for kind, mean in (("original", 0.9), ("plain", 0.1), ("attacked", 0.5))
    },
    "found": [
        {
            "concept": "cat",
            "seed": 0,
            "success": 0.5,
            "prompt": "a feline | <b>",
            "embedding": None,
        }
    ],
    "curve": [{"budget": 1, "success": 0.2}, {"budget": 8, "success": 0.5}],
    "controls": {"new word": {"mean": 0.2, "low": 0.1, "high": 0.3, "seeds": 3, "images": 9}},
    "cost": {"seconds": 3.5, "evaluations": 8, "backwards": 2, "peak_gib": 0.5},
}


@pytest.fixture(scope="module")
def attacked(run):
    """The run with an attack on it, logged afterwards, both ways."""
    folder = run / "attacks" / "relearn"
    folder.mkdir(parents=True)
    protocol = json.loads((run / "metrics.json").read_text())["protocol"]
    (folder / "attack.json").write_text(json.dumps(OUTCOME | {"protocol": protocol}))
    assert main(["log", "tiny-cat", "--logger", "wandb", "--offline"]) == 0
    assert main(["log", "tiny-cat/attacks/relearn", "--logger", "tensorboard"]) == 0
    return folder


def test_an_attack_is_in_the_group_of_its_run(attacked, logged):
    (folder,) = attacked.glob("wandb/offline-run-*")
    offline = OfflineRun(folder)
    run = offline.run
    assert (run.project, run.run_group) == (logged.run.project, logged.run.run_group)
    assert run.job_type == "attack"
    assert run.display_name == "tiny-cat-relearn"
    assert (offline.config["method"], offline.config["attack"]) == ("Distillation", "Relearn")
    columns, (row,) = offline.table("attacks")
    assert dict(zip(columns, row, strict=True))["attacked mean"] == 0.5
    assert offline.table("found")[1] == [["Relearn", "cat", 0, 0.5, "a feline | <b>"]]
    assert offline.table("controls")[1] == [["Relearn", "Distillation", "new word", 0.2, 0.1, 0.3]]
    interval = [offline.summary[f"attacked_relearn{end}"] for end in ("", "_low", "_high")]
    assert interval == [0.5, 0.4, 0.6]
    assert [artifact for artifact in offline.artifacts if "curve" in artifact]
    assert leaks(attacked / "wandb") == set()


def test_a_run_logged_afterwards_equals_the_run_logged_at_once(attacked, run, logged):
    folders = run.glob("wandb/offline-run-*")
    again = OfflineRun(max(folders, key=lambda folder: folder.stat().st_mtime))
    assert again.run.run_id != logged.run.run_id
    assert again.config == logged.config
    assert again.table("figures") == logged.table("figures")
    assert again.curve("loss").items() >= logged.curve("loss").items()
    for name in ("overall", "cost_steps"):
        assert again.summary[name] == logged.summary[name]
    assert "tiny-cat" in again.artifacts


def test_an_attack_on_tensorboard(attacked):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    (folder,) = attacked.glob("lightning_logs/*")
    events = reader.EventAccumulator(str(folder)).Reload()
    points = events.Scalars("curve/relearn over budget")
    assert [(point.step, round(point.value, 3)) for point in points] == [(1, 0.2), (8, 0.5)]
    (text,) = events.Tensors("found/text_summary")
    assert "a feline \\| <b>" in text.tensor_proto.string_val[0].decode()


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("cost.json", '{"seconds": ', "needs the cost as `erasure fit` writes it; found other"),
        ("cost.json", "[]", "needs the cost as `erasure fit` writes it; found other"),
        ("metrics.csv", "step,loss\n0,much\n", "needs numbers, as `erasure fit` writes them; f"),
        ("grid.png", "", "needs images as `erasure test` writes them; found others"),
    ],
)
def test_a_damaged_file_is_one_line(run, tmp_path, monkeypatch, capsys, file, content, message):
    shutil.copytree(run, tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run" / file).write_text(content)
    assert main(["log", "run", "--logger", "tensorboard"]) == 2
    error = capsys.readouterr().err
    assert f"{file} {message}" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["nowhere", "--logger", "wandb", "--offline"],
            "erasure log needs the folder of a finished run or of an attack",
        ),
        (["tiny-cat"], "erasure log needs --logger (see erasure log --help)."),
        (
            ["tiny-cat", "--logger", "wanb"],
            "--logger needs one of 'wandb', 'tensorboard'; found 'wanb'",
        ),
    ],
)
def test_a_mistake_is_one_line(run, capsys, argv, message):
    assert main(["log", *argv]) == 2
    assert capsys.readouterr().err.startswith(f"erasure: error: {message}")
