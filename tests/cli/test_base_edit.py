"""``--model.base_edit``: a queue of erasures on the command line, measured against the unedited
model, and reported.
"""

import json
import re

import pytest
from tiny_scorers import save_scorer
from trivial import TINY

from erasure_lightning.cli.main import main
from erasure_lightning.edits.edit import read_edit
from erasure_lightning.files.writing import EDIT_FILE

STAR = ["--model.concepts", "[{name: star, anchor: dog}]"]


@pytest.fixture(scope="module")
def queue(tmp_path_factory):
    """A first run, and a second that starts from it."""
    folder = tmp_path_factory.mktemp("queue")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        save_scorer(folder / "clip")
        assert main(["fit", *TINY, "--run_dir", "first", "--measure", "false"]) == 0
        base = ["--model.base_edit", "first"]
        measure = ["--trainer.callbacks+=Measure", "--trainer.callbacks.scorer=clip"]
        assert main(["fit", *TINY, *STAR, *base, *measure, "--run_dir", "second"]) == 0
    return folder


def test_the_second_run_names_the_first_and_is_measured_against_the_unedited_model(queue):
    first = read_edit(queue / "first" / EDIT_FILE).metadata
    second = read_edit(queue / "second" / EDIT_FILE).metadata
    (entry,) = second["base_edits"]
    assert entry["edit"] == "Distillation of cat"
    assert second["unedited_fingerprint"] == first["backbone_fingerprint"]
    assert second["backbone_fingerprint"] != first["backbone_fingerprint"]
    metrics = json.loads((queue / "second" / "metrics.json").read_text())
    assert metrics["protocol"]["backbone_fingerprint"] == first["backbone_fingerprint"]
    assert metrics["protocol"]["prompts"]["earlier"] == ["a cat", "an image of a cat", "cat"]
    assert "a cat" not in metrics["protocol"]["prompts"]["specificity"]
    assert set(metrics["estimates"]["earlier"]["recognized"]) == {"before", "after"}


def test_the_report_says_whether_the_earlier_concept_is_still_gone(queue, monkeypatch):
    monkeypatch.chdir(queue)
    assert main(["report", "second", "--card"]) == 0
    page = (queue / "second" / "report.html").read_text()
    words = re.sub(r"<[^>]*>", "", page)
    assert "It is based on Distillation of cat; “before” is the model without any edit." in words
    assert "What was erased earlier (cat) is shown in" in words
    assert "What was erased earlier" in (queue / "second" / "model_card.md").read_text()


def test_a_base_edit_that_is_gone_or_another_ends_in_a_line(queue, monkeypatch, capsys):
    monkeypatch.chdir(queue)
    (queue / "first").rename(queue / "elsewhere")
    try:
        assert main(["test", "--ckpt_path", "second", "--run_dir", "never"]) == 2
        assert "No edit at first" in capsys.readouterr().err
        test = ["test", "--config", "second/config.yaml", "--ckpt_path", "second"]
        moved = ["--model.base_edit", "elsewhere", "--run_dir", "tested"]
        assert main([*test, *moved]) == 0
        assert main([*test, "--model.base_edit", "null", "--run_dir", "plain"]) == 2
        assert "is based on Distillation of cat" in capsys.readouterr().err
    finally:
        (queue / "elsewhere").rename(queue / "first")
    twice = ["--model.base_edit", "[first, first/edit.safetensors]"]
    assert main(["fit", *TINY, *STAR, *twice, "--run_dir", "twice"]) == 2
    assert "needs each edit once" in capsys.readouterr().err
    assert not (queue / "twice").exists()
