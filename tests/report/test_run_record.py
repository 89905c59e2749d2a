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
from erasure_lightning.report.curves import MOST
from erasure_lightning.report.run_record import read_facts


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "uce-cat")


def test_a_run_with_everything(run):
    facts = read_facts(run)
    assert (facts.name, facts.measured, facts.method) == ("uce-cat", ".", "UCE")
    assert facts.paper.endswith("https://arxiv.org/abs/2308.14761")
    assert [c.name for c in facts.concepts] == ["cat"]
    assert (facts.edit.tensors, facts.edit.values, facts.edit.components) == (
        1,
        12,
        ("text_encoder",),
    )
    assert len(facts.edit.sha256) == 64
    assert facts.result.protocol.identity == PROTOCOL.identity
    assert [c.name for c in facts.curves] == ["monitor/kept", "monitor/forgotten", "loss/erasure"]
    assert facts.cost == {"seconds": 3.25, "steps": 40, "peak_gib": 0.5}
    assert [a.outcome.attack for a in facts.attacks] == ["UnlearnDiffAtk"]
    assert len(facts.samples) == 4
    assert facts.notes == ()


def test_any_file_of_a_run_names_it(run):
    assert read_facts(run / "edit.safetensors") == read_facts(run)


def test_a_config_keeps_its_types_and_loses_its_paths(run):
    config = read_facts(run).config
    assert "backbone: …/sd\n" in config
    assert "lr: 1.0e-05" in config
    assert "/home" not in config


def test_an_unfinished_run_says_what_it_was_to_make(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    write_config(folder, description())
    facts = read_facts(folder)
    assert (facts.method, facts.edit, facts.result, facts.samples) == ("UCE", None, None, ())
    assert facts.concepts[0].anchor == "dog"


@pytest.mark.parametrize(
    "content", ["", "[]", "model: 3", "model: {init_args: {concepts: hundred.csv}}"]
)
def test_an_odd_config_of_an_unfinished_run(tmp_path, content):
    (tmp_path / "config.yaml").write_text(content)
    assert read_facts(tmp_path).concepts == ()


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

    def test_the_newest_measurement_counts_where_fit_made_none(self, apart):
        facts = read_facts(apart)
        assert facts.measured == "test"
        assert facts.result
        assert facts.samples
        assert facts.test_options == ("--data.seeds 5", "--data.originals '\"\\u2026/originals\"'")

    def test_it_can_be_named_itself(self, apart):
        write_figures(apart, description())
        facts = read_facts(apart / "test")
        assert (facts.name, facts.measured) == ("uce-cat", "test")
        assert facts.edit


class TestBroken:
    @pytest.mark.parametrize("content", ["{", "[1]", '{"seconds": "much"}', ""])
    def test_a_cost_that_cannot_be_read_is_told(self, run, content):
        (run / "cost.json").write_text(content)
        facts = read_facts(run)
        assert facts.cost == {}
        assert facts.notes == ("cost.json cannot be read: what the edit cost is left out.",)

    def test_an_attack_that_cannot_be_read_is_told(self, run):
        (run / "attacks" / "unlearndiffatk" / "attack.json").write_text('{"attack": 1}')
        facts = read_facts(run)
        assert facts.attacks == ()
        assert facts.notes == ("attacks/unlearndiffatk cannot be read and is left out.",)

    def test_an_attack_on_another_edit_is_left_out(self, run):
        place = run / "attacks" / "unlearndiffatk" / "attack.json"
        outcome(description(), edit="0123456789abcdef").save(place)
        assert "another edit (0123456789abcdef)" in read_facts(run).notes[0]
        outcome(description(), edit=read_facts(run).edit.sha256[:16]).save(place)
        assert len(read_facts(run).attacks) == 1

    @pytest.mark.parametrize(
        ("name", "content", "words"),
        [
            ("metrics.json", "{", "needs figures as `erasure test` writes them"),
            ("edit.safetensors", "cut", "needs to be an edit as `erasure fit` writes it"),
            ("config.yaml", "a: [", "needs to be the config of a run; found no valid YAML"),
        ],
    )
    def test_what_a_report_rests_on_is_refused(self, run, name, content, words):
        (run / name).write_text(content)
        with pytest.raises(ErasureError, match=words):
            read_facts(run)

    def test_a_safetensors_file_of_another_kind(self, run):
        from numpy import zeros
        from safetensors.numpy import save_file

        save_file({"a": zeros(1)}, run / "edit.safetensors")
        with pytest.raises(ErasureError, match="found none"):
            read_facts(run)

    def test_concepts_of_another_kind(self, run):
        write_edit(run, description(concepts=[{"wings": 2}]))
        with pytest.raises(ErasureError, match="needs concepts as `erasure fit` notes them"):
            read_facts(run)

    @pytest.mark.parametrize(
        "content", [b"", b"step\n1\n", b"step,loss\n1,nan\n2,\n3,x\n", b"\xff\xfe", b"a,b\n1,2\n"]
    )
    def test_a_log_without_curves(self, run, content):
        (run / "metrics.csv").write_bytes(content)
        facts = read_facts(run)
        assert facts.curves == ()
        assert bool(facts.notes) == (content == b"\xff\xfe")

    def test_no_run_is_refused(self, tmp_path):
        with pytest.raises(ErasureError, match="there is no such folder"):
            read_facts(tmp_path / "gone")
        with pytest.raises(
            ErasureError, match=r"found none of edit.safetensors, config.yaml, metrics.json in"
        ):
            read_facts(tmp_path)


def test_whatever_only_adds_may_be_missing(run):
    for name in ("samples", "attacks"):
        shutil.rmtree(run / name)
    for name in ("cost.json", "metrics.csv", "config.yaml"):
        (run / name).unlink()
    facts = read_facts(run)
    assert (facts.samples, facts.attacks, facts.curves, facts.cost, facts.config) == (
        (),
        (),
        (),
        {},
        "",
    )
    assert facts.notes == ()


def test_a_long_log_is_thinned_to_means(run):
    (run / "metrics.csv").write_text("step,loss\n" + "".join(f"{i},{i % 2}\n" for i in range(2000)))
    (curve,) = read_facts(run).curves
    assert len(curve.values) == MOST
    assert set(curve.values) == {0.5}
    assert curve.each == 10


def test_a_plugin_that_is_not_installed_has_no_paper(run):
    write_edit(run, description(method="somewhere.else.Method"))
    facts = read_facts(run)
    assert (facts.method, facts.package, facts.paper) == ("Method", "", "")
    assert json.loads((run / "metrics.json").read_text())
