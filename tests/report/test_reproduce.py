"""The commands and the config of a page make its edit again."""

import hashlib
import html
import re
import shlex
from urllib.request import urlopen

import pytest
from report_runs import HOSTILE, make_run

from erasure_lightning.__main__ import main
from erasure_lightning.report.reproduce import reproduction_commands
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
    fitted = read_run_record(make_run(tmp_path / "one"))
    assert reproduction_commands(fitted)[0].startswith("erasure fit --config one.yaml")
