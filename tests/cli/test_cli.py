import errno
import logging
import os
import shlex
import shutil
import subprocess
import sys
import warnings
from io import StringIO
from pathlib import Path

import diffusers
import pytest
import torch
import transformers
import yaml
from edit_files import read_content, write_content
from jsonargparse import Namespace
from report_runs import description, write_figures
from rich.console import Console
from trivial import TINY, method_options

from erasure_lightning import errors
from erasure_lightning.__main__ import main
from erasure_lightning.api.configs import dump_yaml, load_yaml
from erasure_lightning.api.quiet import quiet
from erasure_lightning.cli.loggers import set_up_loggers
from erasure_lightning.cli.main import COMMANDS
from erasure_lightning.cli.options import Option, Options
from erasure_lightning.cli.short_names import full_words
from erasure_lightning.concepts.concept import Concept, Concepts
from erasure_lightning.edits.edit import read_edit
from erasure_lightning.runs.folder import Run

pytestmark = pytest.mark.usefixtures("folder")

SAGE = method_options("sage")


@pytest.fixture
def error(capsys):
    """Runs the command line, expects one line of error and exit code 2, and returns the line."""

    def run(*argv):
        assert main(list(argv)) == 2
        output = capsys.readouterr().err.splitlines()
        assert len(output) == 1
        assert output[0].startswith("erasure: error: ")
        return output[0].removeprefix("erasure: error: ")

    return run


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run that was measured."""
    run_dir = tmp_path_factory.mktemp("runs") / "done"
    assert main(["fit", *TINY, "--run_dir", str(run_dir)]) == 0
    return run_dir


def printed(capsys, *argv, command="fit"):
    """The output of ``--print_config``."""
    with pytest.raises(SystemExit) as caught:
        main([command, *argv, "--print_config"])
    assert not caught.value.code
    return capsys.readouterr().out


# light commands


@pytest.mark.parametrize("argv", [["--help"], ["methods"], ["attacks"], ["--version"], []])
def test_light_commands_do_not_import_torch(argv):
    code = (
        f"import sys; from erasure_lightning.__main__ import main; main({argv!r});"
        " print(*sys.modules)"
    )
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert not {"torch", "lightning", "jsonargparse", "numpy", "PIL"} & set(
        output.splitlines()[-1].split()
    )


@pytest.fixture(scope="module")
def imported():
    """What a fresh process has imported once a plan has torchmetrics, and once a run is parsed."""
    code = (
        "import sys; from erasure_lightning.cli import light_plan;"
        " light_plan._import_torchmetrics(); print(*sys.modules);"
        " import erasure_lightning.cli.run; print(*sys.modules)"
    )
    command = [sys.executable, "-c", code]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    plan, run = (set(line.split()) for line in output.splitlines()[-2:])
    return {"plan": plan, "run": run}


def test_a_run_is_parsed_without_what_it_may_never_need(imported):
    never = {
        "diffusers",
        "peft",
        "accelerate",
        "transformers.models.clip",
        "wandb",
        "tensorboard",
        "pandas",
        "nudenet",
    }
    assert "erasure_lightning.cli.run" in imported["run"]
    assert not never & imported["run"]


def test_a_plan_imports_torchmetrics_without_what_it_plots_with(imported):
    assert "torchmetrics" in imported["plan"]
    assert not {"scipy", "matplotlib"} & imported["plan"]


def test_help_lists_every_command(capsys):
    assert main(["--help"]) == 0
    output = capsys.readouterr().out
    assert all(
        f"  {name} " in output
        for name in ("fit", "test", "validate", "predict", "compare", "methods")
    )


def test_methods_lists_methods_and_worlds(capsys):
    assert main(["methods", "--verbose"]) == 0
    output = capsys.readouterr().out
    assert "SAGE  " in output
    assert "erasure-lightning 0.1.0, erasure_lightning.methods.sage.SAGE\n" in output
    assert "    loads\n" in output


def test_an_unknown_command(error):
    assert (
        error("fitt")
        == f"unknown command 'fitt'. Did you mean 'fit'? Known: {', '.join(COMMANDS)}."
    )


# names


def test_names_are_found_in_argv_and_in_yaml(capsys, folder):
    short = yaml.safe_load(printed(capsys, *SAGE))
    (folder / "c.yaml").write_text(
        "model:\n  class_path: SAGE\n  init_args: {concepts: [{name: cat, anchor: dog}], backbone:"
        " tinybackbone}\n"
    )
    assert yaml.safe_load(printed(capsys, "--config", "c.yaml")) == short
    assert short["model"]["class_path"] == "erasure_lightning.methods.sage.SAGE"
    assert (
        short["model"]["init_args"]["backbone"]["class_path"]
        == "erasure_lightning.backbones.tiny.TinyBackbone"
    )


def test_every_way_to_name_a_method():
    full = "erasure_lightning.methods.sage.SAGE"
    for argv in (
        ["--model", "sage"],
        ["--model=SAGE"],
        ["--model.class_path", "Sage"],
        ["--model", full],
    ):
        assert full_words(Options.read(argv))[-1].endswith(full)


def test_callbacks_loggers_latents_and_adversaries_have_names(capsys, folder):
    (folder / "c.yaml").write_text(
        "model: sage\ntrainer:\n  logger: [csv, tensorboard]\n  callbacks:"
        " [GlobalSemanticAlignment, {class_path: localnoisepreservation}, LearningRateMonitor]\n"
    )
    config = yaml.safe_load(
        printed(
            capsys,
            "--config",
            "c.yaml",
            "--model.concepts",
            "[{name: cat}]",
            "--model.latents",
            "TrajectoryBank",
            "--model.adversary",
            "stateadversary",
        )
    )
    names = [c["class_path"].rsplit(".", 1)[-1] for c in config["trainer"]["callbacks"]]
    assert names == ["GlobalSemanticAlignment", "LocalNoisePreservation", "LearningRateMonitor"]
    assert [c["class_path"].rsplit(".", 1)[-1] for c in config["trainer"]["logger"]] == [
        "TensorBoardLogger"
    ]
    arguments = config["model"]["init_args"]
    assert arguments["latents"]["init_args"]["trajectories"] == 32
    assert arguments["adversary"]["init_args"]["radius"] == 0.1


def test_lists_on_the_command_line_take_names(capsys):
    lists = ["--trainer.logger", "[csv, tensorboard]"]
    lists += ["--trainer.callbacks", "[localnoisepreservation, Timer]"]
    trainer = yaml.safe_load(printed(capsys, *SAGE, *lists))["trainer"]
    names = [c["class_path"].rsplit(".", 1)[-1] for c in trainer["logger"] + trainer["callbacks"]]
    assert names == ["TensorBoardLogger", "LocalNoisePreservation", "Timer"]
    assert trainer["callbacks"][1]["init_args"]["interval"] == "step"  # of an enum
    wandb = ["--trainer.logger", "{class_path: wandb, init_args: {offline: true}}"]
    logger = yaml.safe_load(printed(capsys, *SAGE, *wandb))["trainer"]["logger"]
    assert logger["class_path"] == "lightning.pytorch.loggers.WandbLogger"


def test_a_printed_config_runs_again(capsys, folder):
    once = printed(
        capsys, "--config", "sage.yaml", "--model.lr", "3e-4", "--trainer.logger", "wandb"
    )
    (folder / "again.yaml").write_text(once)
    assert printed(capsys, "--config", "again.yaml") == once
    assert yaml.safe_load(once)["model"]["init_args"]["lr"] == 3e-4


def test_a_config_in_the_folder_comes_before_a_shipped_one(capsys, folder):
    assert "lollipop" in printed(capsys, "--config", "sage")
    (folder / "sage.yaml").write_text(
        "model: {class_path: sage, init_args: {concepts: [{name: cat}]}}\n"
    )
    assert "lollipop" not in printed(capsys, "--config", "sage.yaml")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("-1.5E+3", -1500.0),
        (".5", 0.5),
        ("1.", 1.0),
        (".inf", float("inf")),
        ("12", 12),
        ("2024-01-02", "2024-01-02"),
        ("1.2.3", "1.2.3"),
        ("e5", "e5"),
        ("word:", "word:"),
        ("{a: 1}", {"a": 1}),
    ],
)
def test_yaml_reads_numbers_as_people_write_them(text, value):
    assert load_yaml(text) == value
    assert type(load_yaml(text)) is type(value)


@pytest.mark.parametrize("file", ["c.csv", "./c.csv", "c"])
def test_concepts_come_from_a_file(capsys, folder, monkeypatch, file):
    (folder / "c.csv").write_text("name,anchor\ncat,dog\n")
    (folder / "concepts").mkdir()
    (folder / "concepts" / "c.yaml").write_text("- {name: cat, anchor: dog}\n")
    monkeypatch.setattr("erasure_lightning.cli.concept_options.SHIPPED", folder)
    inline = printed(capsys, *SAGE)
    assert printed(capsys, *SAGE, "--model.concepts", file) == inline
    assert printed(capsys, *SAGE, f"--model.concepts={file}") == inline
    (folder / "f.yaml").write_text(
        f"model: {{class_path: SAGE, init_args: {{concepts: {file}, backbone: TinyBackbone}}}}\n"
    )
    assert printed(capsys, "--config", "f.yaml") == inline


def test_a_file_of_concepts_may_stand_behind_a_flag(folder):
    (folder / "c.txt").write_text("cat\n")
    options = Options.read(["--print_config", "--model.concepts", "c.txt"])
    assert full_words(options) == ["--print_config", *full_words(options[1:])]
    assert full_words(options)[-1] != "c.txt"


def test_options_are_read_in_order():
    argv = ["word", "--flag", "-c", "a", "--x=1", "other", "--lr", "-1", "--lr", "-2"]
    options = Options.read([*argv, "--last"])
    assert options == (
        Option("", "word"),
        Option("--flag"),
        Option("-c", "a"),
        Option("--x", "1", joined=True),
        Option("", "other"),
        Option("--lr", "-1"),
        Option("--lr", "-2"),
        Option("--last"),
    )
    assert [word for option in options for word in option.words()] == [*argv, "--last"]
    assert (options.get("--lr"), options.get("--last"), options.get("--no")) == ("-2", None, None)


def test_help_names_files_of_concepts(capsys):
    with pytest.raises(SystemExit):
        main(["fit", "--model.help", "SAGE"])
    assert "CSV, YAML or text file of them" in " ".join(capsys.readouterr().out.split())


# mistakes


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            [],
            (
                "erasure fit needs a method: give --config FILE, or --model NAME with"
                " --model.concepts."
            ),
        ),
        (["--model.lr", "7"], "erasure fit needs a method"),
        (["--confg", "sage.yaml"], "unknown argument '--confg'. Did you mean '--config'"),
        (["--modl.lr", "7"], "unknown argument '--modl.lr'"),
        (["--config", "."], "A config needs a YAML file; found the folder ."),
        (["--model", "sgae"], "unknown method 'sgae'. Did you mean 'SAGE' or 'SAFREE'? Known: "),
        (
            ["--model", "sage"],
            "model needs concepts, backbone: give --model.concepts and --model.backbone",
        ),
        (["--model", "trivial.Missing"], "model: module 'trivial' has no attribute 'Missing'"),
        ([*SAGE, "--model.lrr", "1"], "model has no option 'lrr'. Did you mean 'lr'?"),
        ([*SAGE, "--model.edit", "x"], "model has no option 'edit'. Did you mean 'train'?"),
        ([*SAGE, "--model.base", "x"], "model has no option 'base'. Did you mean 'base_dtype'?"),
        ([*SAGE, "--model.lr", "abc"], "model.lr needs a number; found 'abc'"),
        (
            [*SAGE, "--model.train", "x"],
            "model.train needs one of 'text_encoder', 'cross_attention', 'text_entry',",
        ),
        (
            [*SAGE, "--model.concepts", "[{nme: cat}]"],
            "model.concepts has no option 'nme'. Did you mean 'name'?",
        ),
        (
            [*SAGE, "--trainer.max_stepz", "3"],
            "unknown argument '--trainer.max_stepz'. Did you mean '--trainer.max_steps'",
        ),
        ([*SAGE, "--trainer.max_steps", "x"], "trainer.max_steps needs a whole number; found 'x'"),
        (
            [*SAGE, "--trainer.precision", "12"],
            "trainer.precision needs one of 64, 32, 16, 'transformer-engine', 'transformer-engine-"
            "float16', '16-true', '16-mixed', 'bf16-true', 'bf16-mixed', '32-true', '64-true', '64'"
            ", '32', '16', 'bf16'; found '12'",
        ),
        (
            [*SAGE, "--data.seed", "3"],
            "unknown argument '--data.seed'. Did you mean '--data.seeds'",
        ),
        (
            [*SAGE, "--data.size", "64"],
            "unknown argument '--data.size'. Did you mean '--data.image_size'?",
        ),
        ([*SAGE, "word"], "unknown argument 'word'"),
        (
            [*TINY, "--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=accuracy"],
            "Early stopping conditioned on metric `accuracy` which is not available.",
        ),
        (
            [*TINY, "--trainer.callbacks+=BackboneFinetuning"],
            "BackboneFinetuning needs the weights before the run has loaded them",
        ),
        (
            [
                *TINY,
                "--trainer.callbacks+=ModelCheckpoint",
                "--trainer.callbacks.save_last=true",
            ],
            "ModelCheckpoint with save_last writes checkpoints/last.ckpt, from which the run"
            " resumes and which it saves itself (--save_every): leave save_last out, or give"
            " another folder as dirpath.",
        ),
        (
            [*SAGE, "--run_dir", "caf\udce9"],
            "The command line needs words in UTF-8; found 'caf\\udce9'",
        ),
        (
            [*SAGE, "--trainer.logger", "wanb"],
            "unknown trainer.logger 'wanb'. Did you mean 'wandb'?",
        ),
        (
            [*SAGE, "--trainer.logger", "foo"],
            "unknown trainer.logger 'foo'. Known: csv, tensorboard, wandb, or a class path",
        ),
        (
            [*SAGE, "--model.adversary", "StateAdversry"],
            "unknown model.adversary 'StateAdversry'. Did you mean 'StateAdversary'",
        ),
        (
            [*SAGE, "--trainer.callbacks+=GlobalSemanticAlignmnt"],
            (
                "unknown trainer.callbacks 'GlobalSemanticAlignmnt'. Did you mean"
                " 'GlobalSemanticAlignment'?"
            ),
        ),
        (
            [*SAGE, "--trainer.callbacks+=LocalNoisePreservation", "--trainer.callbacks.wight=3"],
            "trainer.callbacks has no option 'wight'. Did you mean 'weight'?",
        ),
        (
            [*SAGE, "--trainer.callbacks", "[3]"],
            "trainer.callbacks needs the name of a Callback; found '3'",
        ),
        (
            [*SAGE, "--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.filename=x"],
            "trainer.callbacks has no option 'filename': others of its kind have, this class has",
        ),
        ([*SAGE, "--model.concepts", "[{name: ''}]"], "model.concepts[0]: A concept needs a name"),
        (
            [*SAGE, "--model.concepts+", "{name: dog}"],
            "--model.concepts+ is not known: give all concepts as one",
        ),
        (
            [*SAGE, "--model.concepts+={name: dog}"],
            "--model.concepts+ is not known: give all concepts as one",
        ),
        (
            [*SAGE, "--model.concepts", "[cat]"],
            "model.concepts needs {name: cat} in its list; found 'cat'",
        ),
        (
            [*SAGE, "--model.concepts", "[{name: [}]"],
            "--model.concepts needs a file or a list like",
        ),
        (
            [*SAGE, "--model.concepts", "cigarete"],
            (
                "--model.concepts needs a list, or a CSV, YAML or text file; found no file"
                " 'cigarete'. Did you mean 'cigarette'?"
            ),
        ),
        (
            [*SAGE, "--model.concepts", "x" * 5000],
            "--model.concepts needs a list, or a CSV, YAML or text file",
        ),
        ([*SAGE, "--data.seeds", "1"], "PromptData needs seeds of at least 2; found 1."),
        (
            [*SAGE, "--trainer.accelerator", "cpu", "--trainer.devices", "0"],
            "`Trainer(devices='0')` value is not a valid input",
        ),
        ([*SAGE, "--trainer.fast_dev_run", "-1"], "fast_dev_run=-1 is not a valid configuration"),
        ([*SAGE, "--save_every", "0"], "Saving needs --save_every of at least 1; found 0."),
        ([*SAGE[:-1], "no-world"], "The backbone 'no-world' was not found"),
        (
            [*SAGE[:-1], "emoji-wrld"],
            "The backbone 'emoji-wrld' was not found: it is no installed world, no folder, and no"
            " Hub id (owner/model). Did you mean 'emoji-world'?",
        ),
        (
            ["--config", "sagee.yaml"],
            "unknown config 'sagee.yaml': no such file. Did you mean 'sage'? Recipes for",
        ),
    ],
)
def test_a_mistake_is_one_clear_line(error, argv, message):
    assert error("fit", *argv).startswith(message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: sgae\n", "unknown method 'sgae'. Did you mean 'SAGE' or 'SAFREE'?"),
        ("modle: sage\n", "the config has no option 'modle'. Did you mean 'model'?"),
        (
            "model: sage\ntrainer: {max_stepz: 4}\n",
            "trainer has no option 'max_stepz'. Did you mean 'max_steps'",
        ),
        (
            "model: sage\ndata: {draw_size: 4}\n",
            "data has no option 'draw_size'. Did you mean 'image_batch_size'?",
        ),
        (
            "model:\n  class_path: sage\n  init_args: {concepts: [{nme: cat}]}\n",
            "model.concepts has no option 'nme'. Did you mean 'name'?",
        ),
        (
            "model:\n  class_path: sage\n  init_args: {concepts: [{name: cat, kind: x}]}\n",
            "model.concepts[0]: kind needs one of thing, style, person, action; found 'x'.",
        ),
        ("model:\n  class_path: sage\n  init_args: {concepts: 5}\n", "model.concepts needs a list"),
        (
            "model:\n  class_path: sage\n  init_args: {concepts: wepon}\n",
            "--model.concepts needs a list, or a CSV",
        ),
        (
            "model:\n  class_path: sage\n  init_args: {lrr: 3}\n",
            "model has no option 'lrr'. Did you mean 'lr'?",
        ),
        ("model:\n  class_path: {sage\n", "c.yaml, line 3: no valid YAML"),
        ("model:\n", "erasure needs model: give --model"),
        (
            "model: sage\ndata: {steps: 2}\ndata: {steps: 4}\n",
            "c.yaml, line 3: no valid YAML (found 'data' twice, first in line 2",
        ),
        ("- model\n", "c.yaml needs options as `name: value` lines; found list."),
        ("", "c.yaml needs options as `name: value` lines; found NoneType."),
    ],
)
def test_a_mistake_in_a_config_is_one_clear_line(error, folder, text, message):
    (folder / "c.yaml").write_text(text)
    assert error("fit", "--config", "c.yaml").startswith(message)


# runs


def test_a_run_that_is_refused_before_it_begins_leaves_no_folder(error, folder):
    """The control is a config that was there before."""
    argv = ["fit", "--model", "SAFREE", "--model.backbone", "TinyXL"]
    argv += ["--model.concepts", "[{name: cat}]", "--run_dir", "runs/refused"]
    refusal = error(*argv)
    assert "SAFREE needs last text states" in refusal
    assert not (folder / "runs").exists()
    (folder / "runs/refused").mkdir(parents=True)
    (folder / "runs/refused/config.yaml").touch()
    assert error(*argv) == refusal
    assert (folder / "runs/refused/config.yaml").exists()


def test_a_run_leaves_its_folder(finished, capsys):
    assert {p.name for p in finished.iterdir()} >= {
        "edit.safetensors", "config.yaml", "metrics.csv", "metrics.json", "grid.png"
    }  # fmt: skip
    assert "config" in read_edit(finished / "edit.safetensors").metadata
    config = yaml.safe_load((finished / "config.yaml").read_text())
    assert config["run_dir"] is config["ckpt_path"] is config["trainer"]["default_root_dir"] is None


def test_the_checkpoints_of_lightnings_callback_are_beside_those_of_the_run(tmp_path):
    run = tmp_path / "run"
    every = ["--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.every_n_train_steps=1"]
    every += ["--trainer.callbacks.save_top_k=-1"]
    assert main(["fit", *TINY, *every, "--measure", "false", "--run_dir", str(run)]) == 0
    saved = [file.relative_to(run) for file in run.rglob("*.ckpt")]
    assert saved
    assert {file.parent for file in saved} == {Path("checkpoints")}
    assert not (run / "run").exists()


def test_the_end_says_what_to_do_next(capsys, folder):
    assert main(["fit", *TINY, "--measure", "false"]) == 0
    output = capsys.readouterr().out
    assert "Erased; the edit is in runs/distillation-cat." in output
    assert "erasure predict --ckpt_path runs/distillation-cat --data.prompts" in output
    assert not (folder / "runs/distillation-cat/metrics.json").exists()


def test_the_command_that_comes_next_has_a_folder_with_spaces_as_one_word(capsys):
    assert main(["fit", *TINY, "--measure", "false", "--run_dir", "my runs/a"]) == 0
    command = capsys.readouterr().out.rpartition("your own prompts: erasure ")[2].splitlines()[0]
    assert shlex.split(command)[:3] == ["predict", "--ckpt_path", "my runs/a"]


def test_a_warning_of_ours_is_a_line_without_its_place_in_the_code(monkeypatch):
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)  # is restored
    assert main(["fit", *TINY, "--measure", "false"]) == 0
    here = errors.__file__
    line = warnings.formatwarning(UserWarning("Cut."), UserWarning, here, 3)
    assert line == "erasure: warning: Cut.\n"
    assert "other.py:3" in warnings.formatwarning(UserWarning("x"), UserWarning, "other.py", 3)


def test_a_finished_run_is_not_touched(error, finished):
    before = {p: p.stat().st_mtime_ns for p in finished.rglob("*")}
    assert "holds a finished run" in error("fit", *TINY, "--run_dir", str(finished))
    assert "nothing is left to resume" in error("fit", *TINY, "--ckpt_path", str(finished))
    assert {p: p.stat().st_mtime_ns for p in finished.rglob("*")} == before


def test_an_edit_is_measured_from_its_folder_alone(finished, capsys):
    for name in ("test", "test-2"):
        assert main(["test", "--ckpt_path", str(finished)]) == 0
        assert (finished / name / "metrics.json").is_file()
    capsys.readouterr()
    assert main(["compare", str(finished), str(finished / "test")]) == 0
    assert "│ [" in capsys.readouterr().out  # intervals are not broken


def test_a_folder_without_a_config_has_that_of_its_edit(finished, folder):
    shutil.copytree(finished, folder / "bare")
    (folder / "bare" / "config.yaml").unlink()
    assert main(["test", "--ckpt_path", "bare"]) == 0


def test_an_edit_without_a_config_needs_one(error, finished, folder):
    tensors, metadata = read_content(finished / "edit.safetensors")
    del metadata["config"]
    write_content(folder / "bare.safetensors", tensors, metadata)
    assert error("test", "--ckpt_path", "bare.safetensors").startswith(
        "erasure test needs the config of the edit, which bare.safetensors has not: give --config"
    )


def test_an_edit_with_values_of_other_shapes_is_one_clear_line(error, finished, folder):
    tensors, metadata = read_content(finished / "edit.safetensors")
    cut = {name: value[:1] for name, value in tensors.items()}
    write_content(folder / "cut.safetensors", cut, metadata)
    message = error("test", "--ckpt_path", "cut.safetensors")
    assert "needs values of shape (16, 32); the checkpoint has (1, 32)" in message


@pytest.mark.parametrize("command", ["test", "validate", "predict"])
def test_a_command_without_an_edit_needs_one(error, command):
    assert error(command).startswith(f"erasure {command} needs an edit: give --ckpt_path RUN")


def test_figures_of_a_later_test_are_compared(folder, finished, capsys):
    assert main(["fit", *TINY, "--measure", "false", "--run_dir", "late"]) == 0
    assert main(["compare", str(finished), "late"]) == 2  # the control
    assert main(["test", "--ckpt_path", "late"]) == 0
    assert main(["compare", str(finished), "late"]) == 0


def test_a_comparison_prints_brackets_of_names(tmp_path, capsys, monkeypatch):
    """They are no markup; a closing tag ended in a traceback."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)
    for name in ("a[bold]", "b[/c]"):
        (tmp_path / name).mkdir(parents=True)
        write_figures(tmp_path / name, description())
    assert main(["compare", "a[bold]", "b[/c]"]) == 0
    printed = capsys.readouterr().out
    assert "a[bold]" in printed
    assert "b[/c]" in printed


def test_an_unfinished_run_is_measured_with_a_warning(folder, capsys):
    assert main(["fit", *TINY, "--measure", "false", "--save_every", "1", "--run_dir", "half"]) == 0
    (folder / "half" / "edit.safetensors").unlink()
    capsys.readouterr()
    assert main(["test", "--ckpt_path", "half"]) == 0
    assert capsys.readouterr().err.splitlines() == [
        "erasure: warning: half holds an unfinished run, whose last checkpoint is used; go on with "
        "`erasure fit --ckpt_path half`."
    ]
    assert (
        main(["test", "--ckpt_path", "half/checkpoints/last.ckpt"]) == 0
    )  # the control: named, it is meant
    assert "warning" not in capsys.readouterr().err


def test_an_edit_alone_brings_its_config(finished, folder):
    edit = folder / "edit.safetensors"
    edit.write_bytes((finished / "edit.safetensors").read_bytes())
    assert main(["validate", "--ckpt_path", str(edit)]) == 0
    assert (folder / "validate" / "metrics.json").is_file()


def test_a_run_of_an_earlier_version_brings_its_config(finished, folder, capsys):
    run = Run(folder / "earlier")
    run.root.mkdir()
    run.edit.write_bytes((finished / "edit.safetensors").read_bytes())
    config = load_yaml((finished / "config.yaml").read_text())
    earlier = {"size": 16, "draw_size": config["data"].pop("image_batch_size")}
    del config["data"]["image_size"]
    run.config.write_text(dump_yaml(config | {"data": config["data"] | earlier}))
    now = load_yaml(printed(capsys, "--ckpt_path", str(run.root), command="test"))
    images = {"image_size": 16, "image_batch_size": earlier["draw_size"]}
    assert now["data"] == config["data"] | images


def test_a_run_with_a_file_of_concepts_needs_it_no_more(folder):
    file = folder / "pets.csv"
    file.write_text("name,anchor\ncat,dog\nbird,dog\nfish,dog\nstar,dog\n")
    assert main(["fit", *TINY, "--model.concepts", "pets.csv", "--measure", "false"]) == 0
    file.unlink()
    run = folder / "runs" / "distillation-pets"
    assert len(read_edit(run / "edit.safetensors").metadata["concepts"]) == 4
    assert main(["test", "--ckpt_path", str(run), "--data.others", "1", "--data.steps", "1"]) == 0
    assert (run / "test" / "metrics.json").is_file()


def test_prompts_are_drawn(finished, folder, error):
    (folder / "p.csv").write_text("prompt,evaluation_seed,case_number\na cat,1,1\n")
    assert (
        main(
            [
                "predict",
                "--ckpt_path",
                str(finished),
                "--data.prompts",
                "p.csv",
                "--run_dir",
                "drawn",
            ]
        )
        == 0
    )
    assert (folder / "drawn" / "edited" / "1.png").is_file()
    assert "drawn is not empty" in error(
        "predict", "--ckpt_path", str(finished), "--data.prompts", "p.csv", "--run_dir", "drawn"
    )


def test_an_edit_is_needed_to_measure_one(error):
    assert (
        error("test", *TINY)
        == "erasure test needs an edit: give --ckpt_path RUN, or an edit.safetensors."
    )


def test_a_checkpoint_never_changes_the_method(error, finished):
    assert error("test", *SAGE, "--ckpt_path", str(finished)).startswith(
        "The checkpoint was made by Distillation, not by SAGE."
    )


def test_other_arguments_than_the_checkpoint_s_are_a_warning(capsys, finished, folder):
    assert (
        main(["validate", "--ckpt_path", str(finished), "--model.lr", "0.5", "--run_dir", "v"]) == 0
    )
    output = capsys.readouterr().err
    assert "erasure: warning: not as the checkpoint was made: lr 0.5 (checkpoint: 0.001)." in output
    assert (
        yaml.safe_load((folder / "v" / "config.yaml").read_text())["model"]["init_args"]["lr"]
        == 0.5
    )


@pytest.mark.parametrize(
    ("method", "message"),
    [("Idle", "Idle changed none"), ("Exploding", "The loss became nan at step 1")],
)
def test_a_failed_run_exports_nothing(error, folder, method, message):
    assert error("fit", *TINY, "--model", f"trivial.{method}", "--run_dir", "r").startswith(message)
    assert not (folder / "r" / "edit.safetensors").exists()


def test_a_closed_form_runs_the_same_way(folder):
    argv = [*TINY[2:4], *TINY[6:], "--measure", "false", "--run_dir", "r"]
    assert main(["fit", "--model", "trivial.Redirection", *argv]) == 0
    assert (folder / "r" / "edit.safetensors").is_file()


def test_saving_can_be_switched_off(folder):
    argv = [
        "--trainer.enable_checkpointing",
        "false",
        "--save_every",
        "1",
        "--measure",
        "false",
        "--run_dir",
        "r",
    ]
    assert main(["fit", *TINY, *argv]) == 0
    assert not (folder / "r" / "checkpoints").exists()


def test_the_same_seed_gives_the_same_edit(folder):
    for name in ("a", "b"):
        torch.rand(3)
        assert main(["fit", *TINY, "--measure", "false", "--run_dir", name]) == 0
    one, two = (read_edit(Path(name, "edit.safetensors")).tensors for name in ("a", "b"))
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_a_method_without_arguments_takes_them_from_the_command_line(folder, error):
    for arguments, name in (("", "empty"), (" []", "list")):
        Path(f"{name}.yaml").write_text(f"model:\n  class_path: ESD\n  init_args:{arguments}\n")
    assert error("fit", "--config", "empty.yaml") == (
        "model needs concepts, backbone: give --model.concepts and --model.backbone"
    )
    assert error("fit", "--config", "list.yaml") == (
        "init_args of ESD needs entries NAME: VALUE; found []."
    )


def test_a_full_disk_is_one_line(error, folder, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert (
        error("fit", *TINY, "--run_dir", "r")
        == "Could not write r/config.yaml: No space left on device. What was there before is"
        " untouched."
    )


def denied(number, name):
    def work(*argv):
        raise OSError(number, os.strerror(number), name)

    return work


@pytest.mark.parametrize(
    ("cause", "beginning"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has"),
            "not enough memory for 2.50 GiB more. Lower --data.batch_size",
        ),
        (
            RuntimeError("DefaultCPUAllocator: can't: you tried to allocate 7 bytes. Error code"),
            "not enough memory for 7 bytes more. Lower --data.batch_size",
        ),
        (MemoryError(), "not enough memory. Lower --data.batch_size"),
    ],
)
def test_memory_that_is_not_there_is_one_line(error, monkeypatch, cause, beginning):
    def fail(*argv):
        raise cause

    monkeypatch.setattr("erasure_lightning.cli.fit.run_fit", fail)
    assert error("fit").startswith(beginning)


def test_another_error_of_torch_keeps_its_traceback(monkeypatch):
    """The control: it is no mistake of the user."""

    def fail(*argv):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr("erasure_lightning.cli.fit.run_fit", fail)
    with pytest.raises(RuntimeError, match="mat1"):
        main(["fit"])


@pytest.mark.parametrize("number", [errno.EACCES, errno.ENOENT])
def test_an_unreadable_file_is_not_called_unwritable(error, monkeypatch, number):
    """`ENOENT`: another process has removed it."""
    monkeypatch.setattr("erasure_lightning.cli.run.run", denied(number, "prompts.csv"))
    assert error("predict") == f"prompts.csv could not be used: {os.strerror(number)}."


def test_a_file_system_that_cannot_be_written_leaves_files_untouched(error, monkeypatch):
    monkeypatch.setattr("erasure_lightning.cli.run.run", denied(errno.EROFS, "out"))
    assert (
        error("fit")
        == "out could not be written: Read-only file system. What was there before is untouched."
    )


def test_a_folder_that_cannot_be_made_is_one_line(error, folder):
    (folder / "file").touch()
    assert "file/r" in error("fit", *TINY, "--run_dir", "file/r")


# loggers


def test_wandb_online_without_a_key_says_how_to_go_offline(error, folder, monkeypatch):
    monkeypatch.setattr("wandb.login", lambda prompt: False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    output = error("fit", *TINY, "--trainer.logger", "wandb")
    assert "found none" in output
    assert "--trainer.logger.offline true, or WANDB_MODE=offline" in output
    assert not list(folder.iterdir())


def test_an_unknown_mode_of_wandb_is_one_clear_line(error, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "ofline")
    message = error("fit", *TINY, "--trainer.logger", "wandb", "--run_dir", "r")
    assert message.startswith("WANDB_MODE needs one of online, offline, ")
    assert message.endswith("found 'ofline'.")


def test_a_logger_writes_into_the_run_beside_the_table(folder):
    argv = ["--trainer.logger", "tensorboard", "--measure", "false", "--run_dir", "r"]
    assert main(["fit", *TINY, *argv]) == 0
    assert list(folder.glob("r/lightning_logs/*/events*"))
    assert (folder / "r" / "metrics.csv").read_text().startswith("step,")
    assert [p.name for p in folder.iterdir()] == ["r"]


@pytest.mark.slow
def test_wandb_offline_needs_no_account(folder, monkeypatch):
    monkeypatch.setenv("WANDB_SILENT", "true")
    argv = [
        "--trainer.logger",
        "wandb",
        "--trainer.logger.offline",
        "true",
        "--measure",
        "false",
        "--run_dir",
        "r",
    ]
    assert main(["fit", *TINY, *argv]) == 0
    assert list(folder.glob("r/wandb/offline-run-*"))


def test_loggers_write_into_the_run_s_folder_wherever_their_session_began():
    """W&B's has the working folder of the process's first run."""
    logger = Namespace(class_path="TensorBoardLogger", init_args=Namespace(save_dir="."))
    model = Namespace(class_path="UCE", init_args=Namespace(concepts=Concepts((Concept("cat"),))))
    set_up_loggers(Namespace(trainer=Namespace(logger=logger), model=model), "fit", Run(Path("r")))
    assert logger.init_args.save_dir == str(Path("r").absolute())


@pytest.mark.parametrize("library", [transformers, diffusers])
def test_libraries_that_a_command_imports_late_are_quiet_too(library, monkeypatch):
    variable = f"{library.__name__.upper()}_VERBOSITY"
    monkeypatch.setenv(variable, "warning")
    monkeypatch.delenv(variable)
    assert main(["--version"]) == 0
    assert library.utils.logging._get_default_logging_level() == logging.ERROR


def test_a_reader_who_leaves_gets_no_traceback():
    listing = subprocess.Popen(
        [sys.executable, "-m", "erasure_lightning", "methods"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    listing.stdout.close()
    assert b"Traceback" not in listing.stderr.read()
    assert listing.wait() == 141


def parser_calls(*argv):
    """How often functions of jsonargparse are called while arguments are parsed."""
    calls = 0

    def count(frame, event, _):
        nonlocal calls
        calls += event == "call" and "jsonargparse" in frame.f_code.co_filename

    sys.setprofile(count)
    try:
        with pytest.raises(SystemExit):
            main(["fit", *argv, "--print_config"])
    finally:
        sys.setprofile(None)
    return calls


def test_many_concepts_are_one_value_for_the_parser(folder, capsys):
    for count in (3, 200):
        (folder / f"{count}.txt").write_text(
            "".join(f"painter number {i}x\n" for i in range(count))
        )
    uce = ["--model", "UCE", "--model.backbone", "nowhere", "--trainer.max_steps", "1"]
    few, many = (parser_calls(*uce, "--model.concepts", f"{count}.txt") for count in (3, 200))
    assert many <= few + 2000, (
        "a parser that looks at each concept makes hundreds of calls for each"
    )
    capsys.readouterr()
    for count in (3, 200):
        (folder / f"{count}.yaml").write_text(
            printed(capsys, *uce, "--model.concepts", f"{count}.txt")
        )
        (folder / f"{count}.txt").unlink()
    few, many = (parser_calls("--config", f"{count}.yaml") for count in (3, 200))
    assert many <= few + 2000
    capsys.readouterr()
    assert printed(capsys, "--config", "200.yaml") == (folder / "200.yaml").read_text()


def test_a_closed_pipe_ends_a_run_with_the_code_of_a_closed_pipe(monkeypatch):
    class Closed(StringIO):
        def write(self, text):
            raise BrokenPipeError

    def table():
        with monkeypatch.context() as within:
            within.setattr(os, "dup2", lambda *_: None)  # of rich, to the null device
            Console(file=Closed()).print("a table")

    monkeypatch.setattr("erasure_lightning.cli.main._dispatch", lambda argv: table())
    assert main(["methods"]) == 141


def test_the_report_of_a_profiler_is_not_silenced():
    with quiet():
        assert logging.getLogger("lightning.pytorch.profilers.profiler").isEnabledFor(logging.INFO)
        assert not logging.getLogger("lightning.pytorch.trainer").isEnabledFor(logging.INFO)
