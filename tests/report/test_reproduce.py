"""The commands and the config of a page make its edit again."""

import hashlib
import html
import re
import shlex
from dataclasses import replace
from pathlib import Path
from urllib.request import urlopen

import pytest
from report_runs import HOSTILE, PROTOCOL, description, make_run, outcome

from erasure_lightning.__main__ import main
from erasure_lightning.attacks.latent_inversion import LatentInversion
from erasure_lightning.attacks.outcome import IMAGE_KINDS
from erasure_lightning.attacks.relearning_curve import RelearningCurve
from erasure_lightning.attacks.target import AttackSettings
from erasure_lightning.attacks.trajectory_noise import TrajectoryNoise
from erasure_lightning.attacks.translation import Translation
from erasure_lightning.attacks.unlearn_diff_atk import UnlearnDiffAtk
from erasure_lightning.cli.attack import _arguments, _parser
from erasure_lightning.metrics.estimates import Estimate
from erasure_lightning.report.reproduce import attack_command, reproduction_commands
from erasure_lightning.report.run_record import read_run_record

OPTIONS = """--model trivial.Distillation --model.backbone TinyBackbone --model.lr 1e-3
    --data.others 1 --data.steps 1 --data.seeds 2
    --trainer.max_steps 2 --trainer.accelerator cpu --trainer.enable_progress_bar false"""

#: The hostile name has many tokens.
CUT = "TinyBackbone reads only the beginning of"


@pytest.mark.slow
def test_config_and_command_of_a_page_make_the_same_edit(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    concepts = ["--model.concepts", f"[{{name: '{HOSTILE}'}}]"]
    with pytest.warns(UserWarning, match=CUT):
        assert main(["fit", *OPTIONS.split(), *concepts, "--run_dir", "run"]) == 0
    assert main(["report", "run"]) == 0
    page = (tmp_path / "here" / "run" / "report.html").read_text(encoding="utf-8")
    assert "No scorer recognised what the images show" in page

    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "there")
    address, name = re.search(r'<a href="(data:text/yaml[^"]+)" download="([^"]+)"', page).groups()
    with urlopen(html.unescape(address)) as config:  # as a browser saves it
        (tmp_path / "there" / name).write_bytes(config.read())
    fit, check = html.unescape(re.search(r"<pre>(.*?)</pre>", page, re.S)[1]).splitlines()
    with pytest.warns(UserWarning, match=CUT):
        assert main(shlex.split(fit)[1:]) == 0
    edit = (tmp_path / "there" / check.split()[1]).read_bytes()
    assert f"<code>{hashlib.sha256(edit).hexdigest()[:16]}…</code>" in page


def test_a_composition_is_made_again_of_its_parts(tmp_path):
    """The control is a fit."""
    parts = [{"edit": f"{method} of cat", "strength": 1.0} for method in ("SAGE", "STEREO")]
    both = read_run_record(make_run(tmp_path / "both", composed=parts))
    command = "erasure compose again/sage-of-cat again/stereo-of-cat --out again/both"
    assert reproduction_commands(both)[0] == command
    parts[1]["strength"] = 0.5
    half = read_run_record(make_run(tmp_path / "half", composed=parts))
    first, second = reproduction_commands(half)[:2]
    assert first.startswith("# strengths 1, 0.5: ")
    assert second.startswith("erasure compose ")
    equal = read_run_record(make_run(tmp_path / "equal", composed=[parts[0], parts[0]]))
    command = "erasure compose again/sage-of-cat again/sage-of-cat-2 --out again/equal"
    assert reproduction_commands(equal)[0] == command
    fitted = read_run_record(make_run(tmp_path / "one"))
    assert reproduction_commands(fitted)[0].startswith("erasure fit --config one.yaml")


@pytest.mark.parametrize(
    "attack",
    [
        UnlearnDiffAtk(steps=3, lr=0.5),
        RelearningCurve(examples=[0, 3], train="x", threshold=0.25),
        TrajectoryNoise(etas=[0.5], scales=[1.0, 2.0], seed=4),
        LatentInversion(),
        Translation(words_of={"cat": ["Katze", "l'chat noir"], "dog": ["Hund"]}),
    ],
    ids=lambda attack: type(attack).__name__,
)
def test_the_command_of_an_attack_has_its_budget_and_its_sampling(attack):
    """Lists and mappings too, and what another config would not have."""
    scorer = "owner/clip"  # without which a model of no world cannot be attacked
    seen = AttackSettings(seeds=4, images=3, steps=7, guidance=2.5, image_size=64, scorer=scorer)
    protocol = replace(
        PROTOCOL, scorer=scorer, seeds=list(range(12)), steps=7, guidance=2.5, size=64
    )
    success = {kind: Estimate(0.5, 0.2, 0.8, 4, 12) for kind in IMAGE_KINDS}
    name = type(attack).__name__
    attacked = outcome(
        description("cat"), attack=name, arguments=attack.arguments(), protocol=protocol,
        success=success,
    )  # fmt: skip
    words = shlex.split(attack_command(attacked, "run"))
    assert words[:2] == ["erasure", "attack"]
    parser = _parser()
    again = parser.instantiate(parser.parse_args(_arguments(words[2:])))
    assert type(again.attack) is type(attack)
    assert again.attack.arguments() == attack.arguments()
    assert again.data == seen


def test_the_command_of_an_attack_names_no_scorer_that_is_the_world_s_own():
    world = pytest.importorskip("erasure_lightning_emoji_world")
    own = str(Path("/elsewhere", *Path(world.__file__).parent.parts[-1:], "scorer"))
    for scorer, option in ((own, ""), ("owner/clip", " --data.scorer owner/clip")):
        protocol = replace(PROTOCOL, backbone="emoji-world", scorer=scorer)
        command = attack_command(outcome(description("cat"), protocol=protocol), "run")
        assert command.endswith(f"--data.image_size {protocol.size}{option}")
