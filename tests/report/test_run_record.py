import json
import shutil

import pytest
from report_runs import (
    PROTOCOL,
    description,
    make_run,
    outcome,
    write_config,
    write_edit,
    write_figures,
)

from erasure_lightning.errors import ErasureError
from erasure_lightning.report.run_record import read_run_record


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "uce-cat")


def test_a_complete_run(run):
    record = read_run_record(run)
    assert (record.name, record.figures_folder, record.method) == ("uce-cat", ".", "UCE")
    assert record.paper.endswith("https://arxiv.org/abs/2308.14761")
    assert [c.name for c in record.concepts] == ["cat"]
    assert (record.edit.tensors, record.edit.values) == (1, 12)
    assert record.edit.components == ("text_encoder",)
    assert len(record.edit.sha256) == 64
    assert record.result.protocol.identity == PROTOCOL.identity
    assert [c.name for c in record.curves] == ["monitor/retained", "monitor/erased", "loss/erasure"]
    assert record.cost == {"seconds": 3.25, "steps": 40, "peak_gib": 0.5}
    assert [a.outcome.attack for a in record.attacks] == ["UnlearnDiffAtk"]
    assert len(record.image_pairs) == 4
    assert record.notes == ()


def test_any_file_of_a_run_names_it(run):
    assert read_run_record(run / "edit.safetensors") == read_run_record(run)


def test_types_of_a_config_remain_and_its_paths_are_removed(run):
    config = read_run_record(run).config
    assert "backbone: …/sd\n" in config
    assert "lr: 1.0e-05" in config
    assert "/home" not in config


def test_an_unfinished_run_has_the_metadata_of_its_config(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    write_config(folder, description())
    record = read_run_record(folder)
    assert (record.method, record.edit, record.result, record.image_pairs) == (
        "UCE",
        None,
        None,
        (),
    )
    assert record.concepts[0].anchor == "dog"


@pytest.mark.parametrize(
    "content", ["", "[]", "model: 3", "model: {init_args: {concepts: hundred.csv}}"]
)
def test_an_odd_config_of_an_unfinished_run(tmp_path, content):
    (tmp_path / "config.yaml").write_text(content)
    assert read_run_record(tmp_path).concepts == ()


class TestMeasuredApart:
    @pytest.fixture
    def apart(self, run):
        (run / "test").mkdir()
        (run / "metrics.json").rename(run / "test" / "metrics.json")
        (run / "samples").rename(run / "test" / "samples")
        text = (run / "config.yaml").read_text()
        (run / "test" / "config.yaml").write_text(
            text.replace("seeds: 3", "seeds: 5\n  originals: /home/x/originals")
        )
        return run

    def test_figures_are_read_from_the_newest_test(self, apart):
        record = read_run_record(apart)
        assert record.figures_folder == "test"
        assert record.result
        assert record.image_pairs
        assert record.test_options == ("--data.seeds 5", "--data.originals '\"\\u2026/originals\"'")

    def test_the_folder_of_a_test_may_be_given(self, apart):
        write_figures(apart, description())
        record = read_run_record(apart / "test")
        assert (record.name, record.figures_folder) == ("uce-cat", "test")
        assert record.edit


class TestBroken:
    @pytest.mark.parametrize("content", ["{", "[1]", '{"seconds": "much"}', ""])
    def test_an_unreadable_cost_is_noted(self, run, content):
        (run / "cost.json").write_text(content)
        record = read_run_record(run)
        assert record.cost == {}
        assert record.notes == ("cost.json cannot be read: the cost is left out.",)

    def test_an_unreadable_attack_is_noted(self, run):
        (run / "attacks" / "unlearndiffatk" / "attack.json").write_text('{"attack": 1}')
        record = read_run_record(run)
        assert record.attacks == ()
        assert record.notes == ("attacks/unlearndiffatk cannot be read and is left out.",)

    def test_an_attack_on_another_edit_is_left_out(self, run):
        path = run / "attacks" / "unlearndiffatk" / "attack.json"
        outcome(description(), edit="0123456789abcdef").save(path)
        assert "another edit (0123456789abcdef)" in read_run_record(run).notes[0]
        outcome(description(), edit=read_run_record(run).edit.sha256[:16]).save(path)
        assert len(read_run_record(run).attacks) == 1

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("metrics.json", "{", "needs figures as `erasure test` writes them"),
            ("edit.safetensors", "cut", "needs to be an edit as `erasure fit` writes it"),
            ("config.yaml", "a: [", "needs to be the config of a run; found no valid YAML"),
        ],
    )
    def test_unreadable_figures_edit_or_config_are_refused(self, run, name, content, message):
        (run / name).write_text(content)
        with pytest.raises(ErasureError, match=message):
            read_run_record(run)

    def test_a_safetensors_file_of_another_kind(self, run):
        from numpy import zeros
        from safetensors.numpy import save_file

        save_file({"a": zeros(1)}, run / "edit.safetensors")
        with pytest.raises(ErasureError, match="found none"):
            read_run_record(run)

    def test_concepts_of_another_kind(self, run):
        write_edit(run, description(concepts=[{"wings": 2}]))
        with pytest.raises(ErasureError, match="needs concepts as `erasure fit` writes them"):
            read_run_record(run)

    @pytest.mark.parametrize(
        "content", [b"", b"step\n1\n", b"step,loss\n1,nan\n2,\n3,x\n", b"\xff\xfe", b"a,b\n1,2\n"]
    )
    def test_a_log_without_curves(self, run, content):
        (run / "metrics.csv").write_bytes(content)
        record = read_run_record(run)
        assert record.curves == ()
        assert bool(record.notes) == (content == b"\xff\xfe")

    def test_no_run_is_refused(self, tmp_path):
        with pytest.raises(ErasureError, match="there is no such folder"):
            read_run_record(tmp_path / "gone")
        message = "found none of edit.safetensors, config.yaml, metrics.json in"
        with pytest.raises(ErasureError, match=message):
            read_run_record(tmp_path)


def test_images_attacks_cost_curves_and_config_may_be_missing(run):
    for name in ("samples", "attacks"):
        shutil.rmtree(run / name)
    for name in ("cost.json", "metrics.csv", "config.yaml"):
        (run / name).unlink()
    record = read_run_record(run)
    assert record.image_pairs == record.attacks == record.curves == ()
    assert (record.cost, record.config) == ({}, "")
    assert record.notes == ()


def test_the_row_that_a_kill_has_cut_is_left_out_of_curves(run):
    (run / "metrics.csv").write_text("step,loss\n0,0.5\n1,0.25\n2,1.2e-05\n3,1.1")
    (curve,) = read_run_record(run).curves
    assert curve.values == (0.5, 0.25, 1.2e-05)


def test_a_long_log_is_reduced_to_means(run):
    (run / "metrics.csv").write_text("step,loss\n" + "".join(f"{i},{i % 2}\n" for i in range(2000)))
    (curve,) = read_run_record(run).curves
    assert len(curve.values) == 200
    assert set(curve.values) == {0.5}
    assert curve.window == 10


def test_a_plugin_that_is_not_installed_has_no_paper(run):
    write_edit(run, description(method="somewhere.else.Method"))
    record = read_run_record(run)
    assert (record.method, record.package, record.paper) == ("Method", "", "")
    assert json.loads((run / "metrics.json").read_text())
