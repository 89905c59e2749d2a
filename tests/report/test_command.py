import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from report_runs import make_run, write_figures

from erasure_lightning.__main__ import main

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "uce-cat")


@pytest.fixture
def error(capsys):
    """Runs the command, expects one line of error and exit code 2, and returns the line."""

    def run(*argv):
        assert main(["report", *map(str, argv)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line.removeprefix("erasure: error: ")

    return run


def test_a_page_is_written_to_the_run_and_replaced(run, capsys):
    for _ in range(2):
        assert main(["report", str(run)]) == 0
    assert (run / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    assert not (run / "model_card.md").exists()
    assert f"Written: {run / 'report.html'} (" in capsys.readouterr().out


def test_a_card_is_written_beside_it_and_not_replaced(run, error):
    assert main(["report", str(run), "--card"]) == 0
    (run / "model_card.md").write_text("mine")
    (run / "report.html").unlink()
    message = f"{run / 'model_card.md'} exists already, and is not overwritten"
    assert error(run, "--card").startswith(message)
    assert (run / "model_card.md").read_text() == "mine"
    assert not (run / "report.html").exists()


def test_several_runs_need_a_folder(run, error, tmp_path):
    assert (
        error(run, run)
        == "erasure report of 2 runs needs a folder for its page: give --run_dir DIR."
    )
    assert main(["report", str(run), str(run), "--run_dir", str(tmp_path / "new" / "both")]) == 0
    assert (tmp_path / "new" / "both" / "report.html").exists()
    assert error(run, run, "--run_dir", tmp_path / "x", "--card").startswith(
        "A model card is about one edit; found 2"
    )


def test_nothing_that_is_not_ours_is_overwritten(run, error, tmp_path):
    mine = tmp_path / "report.html"
    mine.write_text("<p>mine")
    assert "was not written by `erasure report`, and is not overwritten" in error(
        run, "--run_dir", tmp_path
    )
    assert "found the file" in error(run, "--run_dir", mine)
    assert mine.read_text() == "<p>mine"


def test_mistakes_end_in_a_line(error, run, tmp_path):
    assert error(tmp_path / "gone").startswith(
        f"No run at {tmp_path / 'gone'}: there is no such folder."
    )
    assert error(tmp_path).startswith(
        "report needs the folder of a run; found none of edit.safetensors"
    )
    assert error() == "erasure report needs RUN (see erasure report --help)."
    assert error(run, "--out", "x.html") == "unknown argument '--out'. Did you mean '--run_dir'?"
    assert error(run, "--crd") == "unknown argument '--crd'. Did you mean '--card'?"
    (run / "metrics.json").write_text("{")
    assert "needs figures as `erasure test` writes them; found others" in error(run)


def test_notes_are_printed(run, capsys):
    (run / "cost.json").write_text("{")
    assert main(["report", str(run)]) == 0
    note = "uce-cat: cost.json cannot be read: the cost is left out.\n"
    assert note in capsys.readouterr().out


def test_any_file_of_a_run_may_be_given(run):
    assert main(["report", str(run / "metrics.json")]) == 0
    assert (run / "report.html").exists()


def test_a_lone_surrogate_is_replaced(run):
    write_figures(run, {"method": "x.Y", "concepts": []})
    text = (run / "metrics.json").read_text().replace('"a kitten"', '"a \\ud800"')
    (run / "metrics.json").write_text(text)
    assert main(["report", str(run)]) == 0


def test_it_imports_no_torch(run):
    code = "import sys; from erasure_lightning.__main__ import main;"
    code += f" main(['report', {str(run)!r}]); print(*sys.modules)"
    command = [sys.executable, "-c", code]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    modules = set(output.splitlines()[-1].split())
    assert not {"torch", "lightning", "jsonargparse", "matplotlib"} & modules


def test_the_templates_are_in_the_wheel(tmp_path):
    from hatchling.builders.wheel import WheelBuilder

    (wheel,) = WheelBuilder(str(ROOT)).build(directory=str(tmp_path))
    files = [Path(name) for name in zipfile.ZipFile(wheel).namelist()]
    packed = {file.name for file in files if file.parts[1:3] == ("report", "templates")}
    folder = ROOT / "erasure_lightning" / "report" / "templates"
    assert packed == {path.name for path in folder.iterdir()}
    assert {"page.html", "style.css", "card.md"} <= packed
