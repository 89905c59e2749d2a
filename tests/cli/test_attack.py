import json

import pytest
import yaml
from edit_files import read_content, write_content
from tiny_scorers import save_scorer

from erasure_lightning.__main__ import main
from erasure_lightning.api.configs import SHIPPED
from erasure_lightning.attacks.outcome import Outcome
from erasure_lightning.attacks.target import AttackSettings
from erasure_lightning.backbones.tiny import TinyBackbone
from erasure_lightning.cli.attack import parsed_attack
from erasure_lightning.concepts.concept import Concept
from erasure_lightning.methods.sage import SAGE
from erasure_lightning.testing import quick_fit

SMALL = {
    "UnlearnDiffAtk": {"tokens": 1, "times": 1, "steps": 1},
    "P4D": {"tokens": 2, "steps": 1, "every": 1},
    "RingABell": {"tokens": 2, "population": 2, "generations": 1},
    "ConceptInversion": {"steps": 1, "examples": 1},
    "SoftEmbedding": {"steps": 1, "examples": 1},
    "LatentInversion": {"steps": 1},
    "BenignFineTune": {"steps": 1, "points": 1, "examples": 1, "batch_size": 1},
    "RelearningCurve": {"steps": 1, "examples": "[0, 1]"},
    "Inpainting": {},
    "Completion": {"share": 0.5},
    "TrajectoryNoise": {"etas": "[1]", "scales": "[1]"},
    "ClassifierGuidance": {"scales": "[1]", "examples": 1, "others": 1, "epochs": 1},
    "Misspelling": {"variants": 1},
    "Translation": {},
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with an edit of a model that lies on the disk, and a scorer."""
    folder = tmp_path_factory.mktemp("saved")
    TinyBackbone().save(folder / "pipeline")
    save_scorer(folder / "scorer")
    module = quick_fit(
        SAGE(concepts=[Concept("cat", "dog")], backbone=str(folder / "pipeline"), check_steps=0), 1
    )
    module.save_edit(folder / "edit.safetensors")
    return folder


@pytest.fixture
def run(saved, tmp_path, monkeypatch):
    """A run's folder in the working folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "edit.safetensors").write_bytes((saved / "edit.safetensors").read_bytes())
    data = {"seeds": 7, "steps": 2, "guidance": 3.0, "batch_size": 4, "templates": None}
    (tmp_path / "run" / "config.yaml").write_text(
        yaml.safe_dump({"model": {"class_path": "SAGE"}, "data": data})
    )
    return tmp_path / "run"


@pytest.fixture
def attack(saved, run):
    """Runs the command on that run."""

    def attacked(*argv):
        quick = ["--data.scorer", str(saved / "scorer"), "--data.images", "1"]
        quick += ["--data.seeds", "2"]
        return main(["attack", "--ckpt_path", str(run), *quick, *map(str, argv)])

    return attacked


@pytest.fixture
def error(attack, capsys):
    """Runs the command, expects one line of error and exit code 2, and returns the line."""

    def message(*argv):
        assert attack(*argv) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line.removeprefix("erasure: error: ")

    return message


def test_a_broken_config_of_the_run_is_named(run, error):
    (run / "config.yaml").write_text("model: [")
    assert error("--attack", "SoftEmbedding").startswith(f"{run / 'config.yaml'}")


def test_it_writes_what_it_found_into_the_run(attack, run, capsys):
    assert attack("--attack", "softembedding", "--attack.steps", "1", "--attack.examples", "1") == 0
    folder = run / "attacks" / "softembedding"
    assert {path.name for path in folder.iterdir()} == {
        "attack.json", "grid.png", "cat-0.safetensors", "cat-1.safetensors"
    }  # fmt: skip
    outcome = Outcome.load(folder / "attack.json")
    assert (outcome.method, outcome.concepts) == ("SAGE", ["cat"])
    assert outcome.arguments == {"steps": 1, "lr": 0.02, "examples": 1, "seed": 0}
    assert "2311.17717" in outcome.paper
    assert len(outcome.edit) == 16
    assert "the edited model, under attack" in capsys.readouterr().out


def test_it_draws_as_the_run_was_measured_unless_it_is_told_otherwise(attack, run):
    assert attack("--attack", "RingABell", "--attack.generations", "0") == 0
    assert (
        attack(
            "--attack",
            "RingABell",
            "--attack.generations",
            "0",
            "--data.steps",
            "1",
            "--run_dir",
            "other",
        )
        == 0
    )
    drawn_with = [
        json.loads(p.read_text())["protocol"]
        for p in (run / "attacks/ringabell/attack.json", *run.parent.glob("other/attack.json"))
    ]
    assert [(p["steps"], p["guidance"]) for p in drawn_with] == [(2, 3.0), (1, 3.0)]


def test_a_base_model_that_was_moved_is_named(attack, run, saved):
    """Without it, the control, the model is missing."""
    tensors, metadata = read_content(run / "edit.safetensors")
    write_content(run / "edit.safetensors", tensors, metadata | {"backbone": "elsewhere"})
    argv = ("--config", "soft-embedding", "--attack.steps", "0")
    assert attack(*argv) == 2
    assert attack(*argv, "--backbone", saved / "pipeline") == 0


def test_a_measurement_s_seeds_are_no_number_of_searches(saved, run):
    """Which is 3 by default; the run was measured with 7."""
    scored = ["--data.scorer", str(saved / "scorer"), "--data.images", "1"]
    argv = ["--ckpt_path", str(run), "--config", "soft-embedding", "--attack.steps", "0"]
    assert main(["attack", *argv, *scored]) == 0
    outcome = Outcome.load(run / "attacks/softembedding/attack.json")
    assert outcome.success["attacked"].seeds == 3


def test_a_run_of_an_earlier_version_is_sampled_as_it_was(tmp_path):
    """Its options have other names there."""
    config = "model: {class_path: UCE}\ndata: {size: 16, draw_size: 3, steps: 2, seeds: 7}\n"
    (tmp_path / "config.yaml").write_text(config)
    settings = parsed_attack(["--ckpt_path", str(tmp_path), "--attack", "SoftEmbedding"])
    assert settings == AttackSettings(image_size=16, image_batch_size=3, steps=2)


def test_configs_are_found_by_name_and_overruled(attack, run):
    assert attack("--config", "soft-embedding", "--attack.steps", "0") == 0
    assert Outcome.load(run / "attacks/softembedding/attack.json").arguments["steps"] == 0


@pytest.mark.parametrize(
    "path", sorted((SHIPPED / "attacks").glob("*.yaml")), ids=lambda path: path.stem
)
def test_every_config_runs(path, attack, run):
    name = yaml.safe_load(path.read_text())["attack"]["class_path"]
    small = [word for key, value in SMALL[name].items() for word in (f"--attack.{key}", value)]
    assert attack("--config", path.name, *small) == 0
    assert Outcome.load(run / "attacks" / name.lower() / "attack.json").attack == name


class TestMistakes:
    def test_an_unknown_attack(self, error):
        assert error("--attack", "unlearndiff").startswith(
            "unknown attack 'unlearndiff'. Did you mean 'UnlearnDiffAtk'"
        )

    def test_a_typo_in_an_option(self, error):
        assert "'stepz'" in (message := error("--attack", "SoftEmbedding", "--attack.stepz", "3"))
        assert "'steps'" in message

    def test_a_value_out_of_range(self, error):
        assert (
            error("--attack", "P4D", "--attack.tokens", "0")
            == "P4D needs tokens of at least 1; found 0."
        )
        assert (
            error("--attack", "P4D", "--data.seeds", "1")
            == "AttackSettings needs seeds of at least 2; found 1."
        )

    def test_a_value_of_the_wrong_kind(self, error):
        assert "attack.steps" in error("--attack", "SoftEmbedding", "--attack.steps", "many")

    def test_more_words_than_fit(self, error):
        assert "has no room for 40 tokens" in error("--attack", "P4D", "--attack.tokens", "40")

    def test_a_missing_config(self, error):
        assert error("--config", "p4").startswith(
            "unknown config 'p4': no such file. Did you mean 'p4d'?"
        )

    def test_no_attack(self, error):
        assert error().startswith(
            "erasure attack needs an attack: give --attack NAME. Known: UnlearnDiffAtk, P4D"
        )

    def test_no_edit(self, capsys):
        assert main(["attack", "--attack", "P4D"]) == 2
        assert "needs an edit: give --ckpt_path RUN" in capsys.readouterr().err

    def test_a_run_that_is_not_there(self, capsys):
        assert main(["attack", "--attack", "P4D", "--ckpt_path", "nowhere"]) == 2
        assert "No checkpoint at nowhere" in capsys.readouterr().err

    def test_what_was_found_is_not_overwritten(self, attack, error):
        assert attack("--attack", "SoftEmbedding", "--attack.steps", "0") == 0
        assert "holds an outcome of SoftEmbedding already" in error("--attack", "SoftEmbedding")

    def test_without_a_scorer(self, run, capsys):
        assert main(["attack", "--attack", "P4D", "--ckpt_path", str(run)]) == 2
        assert "An attack needs a scorer" in capsys.readouterr().err
        assert not (run / "attacks").exists()

    def test_an_option_of_another_name(self, error):
        assert (
            error("--attack", "P4D", "--out", "there")
            == "unknown argument '--out'. Did you mean '--run_dir'?"
        )


class TestHelp:
    def test_of_the_command(self, capsys):
        with pytest.raises(SystemExit):
            main(["attack", "--help"])
        message = " ".join(capsys.readouterr().out.split())
        assert "--data.images" in message
        assert "from noise unseen by it" in message

    def test_of_an_attack(self, capsys):
        with pytest.raises(SystemExit):
            main(["attack", "--attack", "p4d", "--help"])
        message = " ".join(capsys.readouterr().out.split())
        assert "--attack.tokens" in message
        assert "Steps between two evaluations of the words" in message


def test_attacks_are_listed(capsys):
    assert main(["attacks", "--verbose"]) == 0
    message = capsys.readouterr().out
    assert all(f"{name}  " in message for name in SMALL)
    assert "https://arxiv.org/abs/2310.11868" in message
    assert message.count("    loads\n") == len(SMALL)
