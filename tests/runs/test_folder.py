import os

import pytest

from erasure_lightning.errors import ErasureError
from erasure_lightning.runs.csv_log import MetricsFile, read_metrics
from erasure_lightning.runs.folder import (
    Run,
    default_run,
    new_folder,
    run_of,
    slug,
    unused_folder,
)


def test_a_run_is_named_after_method_and_concepts():
    assert (
        str(default_run("SAGE", ["red heart", "cigarette"]).root) == "runs/sage-red-heart-cigarette"
    )


def test_a_run_of_many_concepts_is_named_after_the_first():
    names = [f"c{i}" for i in range(100)]
    assert str(default_run("SAGE", names).root) == "runs/sage-c0-c1-c2-and-97-more"


def test_a_cell_is_named_by_method_concept_and_seed(tmp_path):
    cell = tmp_path / "cells" / "uce" / "red-heart" / "0"
    assert Run(cell).name == "uce-red-heart-0"
    assert Run(cell.parent).name == "red-heart"
    assert Run(tmp_path / "x" / ".." / "run").name == "run"


def test_a_slug_is_a_file_name():
    assert slug("../Tom & Jerry / x") == "tom-jerry-x"
    assert len(slug("word " * 100)) <= 80


@pytest.mark.parametrize("inside", ["", "edit.safetensors", "checkpoints/last.ckpt"])
def test_a_run_is_found_from_anything_in_it(tmp_path, inside):
    assert run_of(tmp_path / inside) == Run(tmp_path)


def test_a_finished_run_is_left_alone(tmp_path):
    run = Run(tmp_path)
    run.edit.touch()
    measure = (
        f"Measure it with `erasure test --ckpt_path {tmp_path}`, or choose another folder with"
        " --run_dir, or delete"
    )
    with pytest.raises(
        ErasureError, match=rf"holds a finished run \(edit.safetensors\).*{measure}"
    ):
        run.check_unused()
    run.metrics.touch()
    with pytest.raises(
        ErasureError, match=r"never overwritten\. Choose another folder with --run_dir, or delete"
    ):
        run.check_unused()
    with pytest.raises(ErasureError, match="nothing is left to resume"):
        run.check_resumable()


def test_figures_are_those_of_fit_or_else_of_the_newest_test(tmp_path):
    run = Run(tmp_path)
    run.edit.touch()
    assert (run.figures, run.command) == (run.metrics, f"erasure test --ckpt_path {tmp_path}")
    for age, name in enumerate(("test-2", "test", "validate")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.json").touch()
        os.utime(tmp_path / name / "metrics.json", (age, age))
    assert (run.figures, run.command) == (tmp_path / "test" / "metrics.json", "")
    run.metrics.touch()
    assert (run.figures, run.command) == (run.metrics, "")


def test_an_unfinished_run_says_how_to_go_on(tmp_path):
    run = Run(tmp_path)
    run.last.parent.mkdir()
    run.last.touch()
    run.check_resumable()
    with pytest.raises(
        ErasureError, match=f"unfinished run. Continue it with `erasure fit --ckpt_path {tmp_path}`"
    ):
        run.check_unused()


def test_a_folder_with_no_more_than_a_config_is_unused(tmp_path):
    folder = tmp_path / "test"
    assert unused_folder(folder) == folder
    folder.mkdir()
    (folder / "config.yaml").touch()
    assert unused_folder(folder) == folder
    (folder / ".config.yaml.123").touch()  # as a faster rank writes it, or a kill has left it
    assert unused_folder(folder) == folder
    (folder / "metrics.json").touch()
    assert unused_folder(folder) == tmp_path / "test-2"


def test_a_file_is_no_folder(tmp_path):
    file = tmp_path / "purify"
    file.touch()
    assert unused_folder(file) == tmp_path / "purify-2"
    with pytest.raises(ErasureError, match=r"^--run_dir needs to be a folder; found the file .*y"):
        new_folder(file, tmp_path / "other")


def rows(folder):
    return (folder / "metrics.csv").read_text().split()


def test_metrics_are_appended_and_new_columns_are_added(tmp_path):
    logger = MetricsFile(tmp_path)
    logger.log_metrics({"a": 1}, 0)
    logger.log_metrics({"a": 2}, 1)
    logger.log_metrics({"b": 3}, 2)
    assert rows(tmp_path) == ["step,a,b", "0,1,", "1,2,", "2,,3"]


def test_a_resumed_run_replaces_what_it_does_again(tmp_path):
    for start, value in ((0, 1), (2, 7)):
        logger = MetricsFile(tmp_path)
        for step in range(start, start + 3):
            logger.log_metrics({"a": value}, step)
    assert rows(tmp_path) == ["step,a", "0,1", "1,1", "2,7", "3,7", "4,7"]


@pytest.mark.parametrize("text", ["epoch,a\n0,1\n", "\n", "step\n\n"])
def test_a_table_of_others_has_no_rows(tmp_path, text):
    (tmp_path / "metrics.csv").write_text(text)
    assert not read_metrics(tmp_path / "metrics.csv")
    MetricsFile(tmp_path).log_metrics({"b": 5}, 2)
    assert rows(tmp_path) == ["step,b", "2,5"]


def test_another_encoding_is_named(tmp_path):
    (tmp_path / "metrics.csv").write_bytes("step,a\n0,1\n".encode("utf-16"))
    with pytest.raises(ErasureError, match=r"metrics.csv needs to be UTF-8, .*found another enc"):
        read_metrics(tmp_path / "metrics.csv")


def test_a_row_cut_short_is_dropped(tmp_path):
    (tmp_path / "metrics.csv").write_text("step,a\n0,1\n1,1\n\x00")
    MetricsFile(tmp_path).log_metrics({"a": 5}, 2)
    assert rows(tmp_path) == ["step,a", "0,1", "1,1", "2,5"]
