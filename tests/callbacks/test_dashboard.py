import getpass
import json
import os
import re
import socket

import pytest
import wandb
import yaml
from tiny_scorers import save_scorer
from wandb_runs import OfflineRun, finished

from erasure_lightning.__main__ import main
from erasure_lightning.edits.edit import read_edit
from erasure_lightning.metrics.protocol import Result
from erasure_lightning.runs.dashboards import PRIVATE

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
        {every: 1, steps: 2, scorer: SCORER, keep_best: false, prompts: {pets: [a dog], birds: [a bird, an owl]}}
    - class_path: Measure
      init_args: {scorer: SCORER}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder to work in, a home and a user with names of their own, and a key in the environment."""
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
def run(place):
    """The folder of a run with both loggers."""
    scorer = save_scorer(place / "scorer")
    (place / "c.yaml").write_text(CONFIG.replace("SCORER", str(scorer)))
    assert main(["fit", "--config", "c.yaml", "--run_dir", "tiny-cat"]) == 0
    return place / "tiny-cat"


@pytest.fixture(scope="module")
def shown(run):
    """What W&B holds of it."""
    (folder,) = run.glob("wandb/offline-run-*")
    return OfflineRun(folder)


@pytest.fixture(scope="module")
def events(run):
    """What TensorBoard holds of it."""
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    (folder,) = run.glob("lightning_logs/*")
    sizes = {"images": 0, "tensors": 0, "scalars": 0}
    return reader.EventAccumulator(str(folder), size_guidance=sizes).Reload()


# Weights & Biases


def test_runs_stand_together_by_concept_and_by_what_they_do(shown):
    run = shown.run
    assert (run.project, run.run_group, run.job_type, run.display_name) == (
        "erasure",
        "cat",
        "fit",
        "tiny-cat",
    )
    assert list(run.tags) == ["Distillation", "cat"]


def test_the_config_says_what_the_run_is(shown, run):
    config = shown.config
    assert (config["method"], config["concepts"], config["seed"]) == ("Distillation", "cat", 0)
    assert config["arguments"]["lr"] == 1e-3
    assert config["protocol"] == Result.load(run / "metrics.json").protocol.identity


@pytest.mark.parametrize(
    "name",
    [
        "loss", "loss/erasure", "loss/global", "monitor/kept", "monitor/forgotten", "monitor/kept/pets",
        "monitor/kept/birds",
    ],
)  # fmt: skip
def test_every_curve_is_there(shown, name):
    assert set(shown.curve(name)) >= {0, 1, 2, 3}


def test_groups_of_the_monitor_make_up_the_whole(shown):
    for step, kept in shown.curve("monitor/kept").items():
        parts = [shown.curve(f"monitor/kept/{group}")[step] for group in ("pets", "birds")]
        assert kept == pytest.approx((parts[0] + 2 * parts[1]) / 3, abs=1e-6)


def test_pictures_are_a_table_before_and_after(shown, run):
    columns, rows = shown.table("pictures")
    assert columns == ["prompt", "group", "seed", "before", "after"]
    assert len(rows) == len(list(run.glob("samples/*-after.png"))) > 0
    assert rows[0][:3] == ["cat", "efficacy", 0]
    assert all(cell["_type"] == "image-file" for row in rows for cell in row[3:])


def test_figures_are_a_table_and_a_summary_with_intervals(shown, run):
    columns, rows = shown.table("figures")
    assert columns[:5] == ["group", "metric", "before mean", "before low", "before high"]
    result = Result.load(run / "metrics.json")
    assert len(rows) == sum(map(len, result.estimates.values()))
    for group in ("efficacy", "generality", "specificity"):
        found = [shown.summary[f"{group}{end}"] for end in ("", "_low", "_high")]
        assert found == pytest.approx(list(result.estimates[group]["recognized"]["after"][:3]))
    assert shown.summary["overall"] == pytest.approx(result.overall("after"))
    assert shown.summary["overall_low"] <= shown.summary["overall"] <= shown.summary["overall_high"]
    assert shown.summary["cost_steps"] == 4


def test_the_edit_is_an_artifact_that_loads(shown, run, place):
    artifact = shown.artifacts["tiny-cat"]
    assert artifact.type == "edit"
    assert '"method":"trivial.Distillation"' in artifact.metadata.replace(": ", ":")
    (content,) = artifact.manifest.contents
    tensors, metadata = read_edit(place / content.local_path)
    assert tensors.keys() == read_edit(run / "edit.safetensors")[0].keys()
    assert yaml.safe_load(metadata["config"])["model"]["class_path"] == "trivial.Distillation"


def test_the_grid_is_a_picture(shown):
    assert list(shown.folder.glob("files/media/images/grid_*.png"))


def test_the_next_run_of_the_process_is_another(shown):
    assert wandb.run is None


def test_prediction_leaves_no_empty_run_behind(run, place):
    (place / "p.csv").write_text("prompt,evaluation_seed,case_number\na cat,1,1\n")
    assert (
        main(
            ["predict", "--ckpt_path", "tiny-cat", "--data.prompts", "p.csv", "--run_dir", "drawn"]
        )
        == 0
    )
    assert (place / "drawn" / "manifest.csv").is_file()
    assert not list((place / "drawn").glob("*/*offline*"))


# TensorBoard


def test_tensorboard_holds_the_same(events, run):
    tags = events.Tags()
    assert {"grid", "pictures/000-before", "pictures/000-after"} <= set(tags["images"])
    assert {"loss", "loss/global", "monitor/kept/pets", "summary/overall_low"} <= set(
        tags["scalars"]
    )
    texts = {tag.partition("/text_summary")[0]: tag for tag in tags["tensors"]}
    assert {"run", "pictures", "figures", "edit/tiny-cat"} <= set(texts)
    (figures,) = events.Tensors(texts["figures"])
    result = Result.load(run / "metrics.json")
    assert (
        str(result.estimates["specificity"]["image_text"]["after"].mean)
        in figures.tensor_proto.string_val[0].decode()
    )


# privacy


def leaks(folder):
    """What a folder of W&B's tells of the machine; where files wait to be sent is W&B's own and not
    sent.
    """
    found, texts = set(), []
    for file in filter(os.path.isfile, folder.rglob("*")):
        if file.suffix == ".wandb":
            for record in finished(file.parent):
                for entry in (
                    record.artifact.manifest.contents if record.HasField("artifact") else ()
                ):
                    entry.local_path = ""
                texts.append(str(record))
        else:
            content = file.read_bytes()
            found |= {kind for kind, word in PRIVATE_WORDS.items() if word.encode() in content}
            texts.append(
                content.decode() if file.suffix in {".json", ".txt", ".log", ".yaml"} else ""
            )
    whole = "\n".join(texts)
    found |= {kind for kind, word in PRIVATE_WORDS.items() if word in whole}
    return found | (
        {"host"} if re.search(rf"\b{re.escape(socket.gethostname())}\b", whole) else set()
    )


def test_nothing_of_the_machine_is_logged(run):
    assert getpass.getuser() == PRIVATE_WORDS["user"]
    assert leaks(run / "wandb") == set()


def test_what_wandb_logs_by_itself_would_be_noticed(place):
    plain = wandb.init(mode="offline", dir=str(place), settings={"silent": True})
    plain.config.update({"key": os.environ["OPENAI_API_KEY"]})
    plain.finish()
    assert leaks(place / "wandb") >= {"host", "folder", "key"}


def test_tensorboard_does_not_tell_the_host(run):
    files = [file for file in (run / "lightning_logs").rglob("*") if file.is_file()]
    assert files
    for file in files:
        assert f".{socket.gethostname()}." not in file.name
        assert not [word for word in PRIVATE_WORDS.values() if word.encode() in file.read_bytes()]


def test_nothing_is_left_in_the_users_home(place, run):
    assert not list((place / PRIVATE_WORDS["home"]).rglob("artifacts"))


def test_settings_that_would_undo_it_are_refused(place, capsys):
    argv = [
        "--config",
        "sage.yaml",
        "--model.backbone",
        "TinyBackbone",
        "--trainer.logger",
        "wandb",
    ]
    argv += ["--trainer.logger.settings", json.dumps({"api_key": KEY}), "--run_dir", "refused"]
    assert main(["fit", *argv]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("erasure: error: The wandb logger needs its settings as they are")
    assert KEY not in said
    assert not (place / "refused").exists()


def test_what_keeps_it_private_is_known_to_wandb():
    assert PRIVATE.keys() <= wandb.Settings.model_fields.keys()


# afterwards


OUTCOME = {
    "attack": "Relearn", "class": "x.Relearn", "arguments": {"file": "/secret/folder-of-someone/list.csv"}, "paper": "",
    "method": "Distillation", "concepts": ["cat"], "edit": "0" * 16,
    "success": {
        asked: {"mean": mean, "low": mean - 0.1, "high": mean + 0.1, "seeds": 3, "pictures": 9}
        for asked, mean in (("original", 0.9), ("plain", 0.1), ("attacked", 0.5))
    },
    "found": [{"concept": "cat", "seed": 0, "success": 0.5, "prompt": "a feline | <b>", "embedding": None}],
    "curve": [{"budget": 1, "success": 0.2}, {"budget": 8, "success": 0.5}],
    "cost": {"seconds": 3.5, "evaluations": 8, "backwards": 2, "peak_gib": 0.5},
}  # fmt: skip


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


def test_an_attack_stands_in_the_group_of_its_run(attacked, shown):
    (folder,) = attacked.glob("wandb/offline-run-*")
    offline = OfflineRun(folder)
    run = offline.run
    assert (run.project, run.run_group, run.job_type) == (
        shown.run.project,
        shown.run.run_group,
        "attack",
    )
    assert run.display_name == "tiny-cat-relearn"
    assert (offline.config["method"], offline.config["attack"]) == ("Distillation", "Relearn")
    columns, (row,) = offline.table("attacks")
    assert dict(zip(columns, row, strict=True))["attacked mean"] == 0.5
    assert offline.table("found")[1] == [["Relearn", "cat", 0, 0.5, "a feline | <b>"]]
    assert [offline.summary[f"attacked_relearn{end}"] for end in ("", "_low", "_high")] == [
        0.5,
        0.4,
        0.6,
    ]
    assert [artifact for artifact in offline.artifacts if "curve" in artifact]
    assert leaks(attacked / "wandb") == set()


def test_a_run_logged_afterwards_says_what_it_said_at_once(attacked, run, shown):
    again = OfflineRun(
        max(run.glob("wandb/offline-run-*"), key=lambda folder: folder.stat().st_mtime)
    )
    assert again.run.run_id != shown.run.run_id
    assert again.config == shown.config
    assert again.table("figures") == shown.table("figures")
    assert again.curve("loss").items() >= shown.curve("loss").items()
    assert [again.summary[name] for name in ("overall", "cost_steps")] == [
        shown.summary[n] for n in ("overall", "cost_steps")
    ]
    assert "tiny-cat" in again.artifacts


def test_an_attack_on_tensorboard(attacked):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    (folder,) = attacked.glob("lightning_logs/*")
    events = reader.EventAccumulator(str(folder)).Reload()
    assert [(e.step, round(e.value, 3)) for e in events.Scalars("curve/relearn over budget")] == [
        (1, 0.2),
        (8, 0.5),
    ]
    (found,) = events.Tensors("found/text_summary")
    assert "a feline \\| <b>" in found.tensor_proto.string_val[0].decode()


@pytest.mark.parametrize(
    ("argv", "said"),
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
def test_a_mistake_is_one_line(run, capsys, argv, said):
    assert main(["log", *argv]) == 2
    assert capsys.readouterr().err.startswith(f"erasure: error: {said}")
