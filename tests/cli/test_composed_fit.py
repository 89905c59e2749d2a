"""``erasure fit`` of a config with parts: fits, sum, resumption, and what is refused in a line."""

import json
import signal
from pathlib import Path

import pytest
import torch
import yaml
from edit_files import read_content

from erasure_lightning import compose
from erasure_lightning.api.configs import config_content
from erasure_lightning.benchmark.suite import MethodEntry
from erasure_lightning.benchmark.suite_reader import SuiteReader
from erasure_lightning.callbacks.interrupt import Interrupted
from erasure_lightning.cli import composed_fit
from erasure_lightning.cli.main import main
from erasure_lightning.edits.edit import read_edit
from erasure_lightning.files.locks import lock_folder

SAGE = {"class_path": "SAGE", "init_args": {"check_steps": 0, "lr": 0.01, "warmup": 0}}
ESD = {"class_path": "ESD", "init_args": {"lr": 0.01, "warmup": 0}}
PARTS = [
    {"name": "words", "config": {"model": SAGE}, "options": {"model.seed": 1}},
    {"name": "images", "config": {"model": ESD}},
]
SHARED = [
    *("--model.backbone", "TinyBackbone", "--model.concepts", "[{name: cat, anchor: dog}]"),
    *("--data.others", "2", "--data.steps", "2", "--data.seeds", "2", "--data.batch_size", "2"),
    *("--trainer.max_steps", "2", "--trainer.accelerator", "cpu", "--save_every", "1"),
    *("--trainer.enable_progress_bar", "false"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A finished run of parts, in the working directory of all tests."""
    folder = tmp_path_factory.mktemp("composed")
    (folder / "both.yaml").write_text(yaml.safe_dump({"parts": PARTS}))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["fit", "--config", "both.yaml", *SHARED]) == 0
        yield folder


@pytest.fixture
def run(folder):
    """The finished run."""
    return folder / "runs" / "both-cat"


def refused(capsys, *words, config="both.yaml"):
    capsys.readouterr()
    code = main(["fit", "--config", config, *SHARED, "--run_dir", "never", *words])
    printed = capsys.readouterr().err
    assert (code, printed.count("\n")) == (2, 1), printed
    return printed


def test_the_edit_is_the_sum_of_the_parts_and_is_measured_like_any_other(run):
    parts = [run / "parts" / name for name in ("words", "images")]
    values, metadata = read_content(run / "edit.safetensors")
    expected = compose(*parts).tensors
    assert values.keys() == expected.keys()
    assert all(torch.equal(values[name], expected[name]) for name in values)
    assert {name.partition(".")[0] for name in values} == {"text_encoder", "unet"}
    assert [entry["edit"] for entry in metadata["composed"]] == ["SAGE of cat", "ESD of cat"]
    assert [read_edit(p / "edit.safetensors").metadata["seed"] for p in parts] == [1, 0]
    estimates = json.loads((run / "metrics.json").read_text())["estimates"]
    assert estimates["structure"]["distance"]["after"]["mean"] > 0
    data = yaml.safe_load((run / "config.yaml").read_text())["data"]
    assert data.items() >= {"steps": 2, "seeds": 2}.items(), "with which it was measured"
    assert (run / "grid.png").exists()
    assert not (run / "test").exists()
    costs = [json.loads((folder / "cost.json").read_text()) for folder in (*parts, run)]
    assert costs[2]["steps"] == costs[0]["steps"] + costs[1]["steps"] == 4
    assert not (parts[0] / "metrics.json").exists()


def test_the_same_command_resumes_what_is_missing(run, capsys):
    """The second part from its checkpoint; the edit is the same, bit for bit."""
    before = read_edit(run / "edit.safetensors").tensors
    words, images = (run / "parts" / name / "edit.safetensors" for name in ("words", "images"))
    time = words.stat().st_mtime_ns
    for file in (run / "edit.safetensors", run / "metrics.json", images):
        file.unlink()
    capsys.readouterr()
    assert main(["fit", "--config", "both.yaml", *SHARED]) == 0
    assert "words: fitted already" in capsys.readouterr().out
    assert words.stat().st_mtime_ns == time
    after = read_edit(run / "edit.safetensors").tensors
    assert all(torch.equal(before[name], after[name]) for name in before | after)
    assert (run / "metrics.json").exists()
    assert main(["fit", "--config", "both.yaml", *SHARED]) == 2
    assert "holds a finished run" in capsys.readouterr().err


def test_two_commands_cannot_write_one_folder(folder, capsys):
    with lock_folder(folder / "never"):
        assert "never is being written to by process" in refused(capsys)
    assert not (folder / "never").exists()


def test_an_interrupted_measurement_is_resumed_too(run, monkeypatch, capsys):
    before = (run / "metrics.json").read_bytes()
    (run / "metrics.json").unlink()

    def interrupt(*_):
        raise Interrupted(signal.SIGINT, "Interrupted at once.")

    with monkeypatch.context() as patched:
        patched.setattr(composed_fit, "run", interrupt)
        assert main(["fit", "--config", "both.yaml", *SHARED]) == 130
    assert "The same command as before resumes all parts." in capsys.readouterr().out
    assert main(["fit", "--config", "both.yaml", *SHARED]) == 0
    assert (run / "metrics.json").read_bytes() == before
    assert not (run / "test").exists()


def test_a_part_of_another_config_is_not_used(run, capsys):
    (run / "edit.safetensors").rename(run / "moved")
    try:
        others = ["--run_dir", str(run), "--data.seeds", "3"]  # of the measurement, so no reason
        line = refused(capsys, *others, "--trainer.gradient_clip_val", "2.0")
        assert "parts/words holds a fit of another config" in line
        assert "trainer.gradient_clip_val: None and 2.0 (there and here)" in line
    finally:
        (run / "moved").rename(run / "edit.safetensors")


MISTAKES = {
    "without a config": (
        [{"name": "words"}, *PARTS[1:]],
        "parts[0] needs config; found name",
    ),
    "one part": (PARTS[:1], "parts needs at least two entries; found 1"),
    "of one name": ([PARTS[0], PARTS[0]], "found 'words' more than once"),
    "named by a path": (
        [PARTS[0], PARTS[1] | {"name": "../images"}],
        "parts needs names of folders; found the path '../images'",
    ),
    "with parts": (
        [PARTS[0], {"name": "x", "config": {"parts": PARTS}}],
        "the part x has parts of its own",
    ),
    "an unknown option": (
        [PARTS[0], PARTS[1] | {"options": {"model.check_steps": 1}}],
        "The part images cannot run: model has no option 'check_steps'",
    ),
    "a value out of range": (
        [PARTS[0], PARTS[1] | {"options": {"model.lr": -1}}],
        "The part images cannot run: ESD needs lr",
    ),
    "adapters": (
        [PARTS[0], {"name": "spm", "config": {"model": {"class_path": "SPM"}}}],
        "the part spm needs to edit weights; found SPM",
    ),
    "a rule": (
        [PARTS[0], {"name": "sld", "config": {"model": {"class_path": "SLD"}}}],
        "the part sld needs to edit weights; found SLD",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_end_in_a_line_before_any_part_is_fitted(mistake, folder, capsys):
    parts, message = MISTAKES[mistake]
    (folder / "wrong.yaml").write_text(yaml.safe_dump({"parts": parts}))
    assert message in refused(capsys, config="wrong.yaml")
    assert not (folder / "never").exists()


def differing(**second):
    """A config whose second part has arguments of its own, which no option replaces."""
    init_args = {"concepts": [{"name": "cat"}], "backbone": "TinyBackbone"}
    methods = [SAGE | {"init_args": SAGE["init_args"] | init_args}]
    methods += [ESD | {"init_args": ESD["init_args"] | init_args | second}]
    names = ("words", "images")
    return [{"name": n, "config": {"model": m}} for n, m in zip(names, methods, strict=True)]


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({"concepts": [{"name": "star"}]}, "found cat (words) and star (images)"),
        ({"backbone": "TinyXL"}, "words and images differ in backbone"),
    ],
)
def test_parts_of_other_concepts_or_models_are_refused(second, message, folder, capsys):
    (folder / "wrong.yaml").write_text(yaml.safe_dump({"parts": differing(**second)}))
    assert main(["fit", "--config", "wrong.yaml", "--run_dir", "never"]) == 2
    assert message in capsys.readouterr().err
    assert not (folder / "never").exists()


def test_other_commands_and_several_devices_are_refused(folder, capsys):
    assert "on one device" in refused(capsys, "--trainer.devices", "2")
    assert "is the only config" in refused(capsys, "--ckpt_path", "runs/both-cat")
    for command in ("plan", "test"):
        assert main([command, "--config", "both.yaml"]) == 2
        assert "has parts, which erasure fit alone reads" in capsys.readouterr().err
    assert main(["compose", "both.yaml", "runs/both-cat", "--out", "never"]) == 2
    assert "erasure fit --config FILE fits" in capsys.readouterr().err


def test_help_is_that_of_a_fit(folder, capsys):
    with pytest.raises(SystemExit):
        main(["fit", "--config", "both.yaml", "--help"])
    assert "--model.help" in capsys.readouterr().out


def test_the_shipped_one_is_sage_beside_stereo(folder, capsys):
    """Also where a suite names it: written out, it is the same config."""
    methods = {"backbone": "TinyBackbone", "methods": ["sage", "sage-robust"]}
    (folder / "pets.yaml").write_text(yaml.safe_dump(methods | {"concepts": [{"name": "cat"}]}))
    sage, robust = SuiteReader(config_content, lambda name: []).read(Path("pets.yaml")).methods
    assert [part["name"] for part in robust.config["parts"]] == ["sage", "stereo"]
    assert MethodEntry(**robust.config["parts"][0]) == sage
    (folder / "written.yaml").write_text(yaml.safe_dump(robust.config))
    printed = []
    for name in ("sage-robust", "written.yaml"):
        capsys.readouterr()
        assert main(["fit", "--config", name, *SHARED[:4], "--print_config"]) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]
    assert "name: cat" in printed[0]
    assert "# stereo" in printed[0]
