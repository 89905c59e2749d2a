"""Files and values where another kind is needed: each ends in one line that says what to do."""

import pytest
from PIL import Image
from trivial import TINY

from erasure_lightning.__main__ import main

pytestmark = pytest.mark.usefixtures("folder")

UCE = "model: {class_path: uce, init_args: {backbone: x, concepts: [{name: cat}]}}\n"

SUITE = "backbone: x\nmethods: [uce]\nconcepts: [{name: cat}]\noptions: {data.seeds: 2}\n"

FILES = {
    "a suite": (SUITE, "c.yaml is a suite: run it with `erasure benchmark c.yaml`."),
    "an attack": (
        "attack: {class_path: P4D, init_args: {tokens: 3}}\n",
        "c.yaml configures an attack: give it to `erasure attack --config`.",
    ),
    "a number as data": (f"{UCE}data: 3\n", "c.yaml: data needs `name: value` lines; found 3."),
    "empty data": (f"{UCE}data:\n", "c.yaml: data needs `name: value` lines; found None."),
    "an empty trainer": (
        f"{UCE}trainer:\n",
        "c.yaml: trainer needs `name: value` lines; found None.",
    ),
    "a list as model": ("model: [uce]\n", "model needs the name of a ErasureModule; found ["),
}

SHIPPED = {
    "emoji-bench": "erasure benchmark emoji-bench",
    "p4d.yaml": "erasure attack --config p4d",
    "concepts/heart.yaml": "erasure fit --model.concepts heart",
}


@pytest.fixture
def error(capsys):
    """Runs the command line, expects one line of error and exit code 2, and returns the line."""

    def run(*argv):
        assert main(list(argv)) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line.removeprefix("erasure: error: ")

    return run


@pytest.mark.parametrize("kind", FILES)
def test_a_file_of_another_kind(error, folder, kind):
    text, message = FILES[kind]
    (folder / "c.yaml").write_text(text)
    assert error("fit", "--config", "c.yaml").startswith(message)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_file_of_another_command(error, name):
    use = f"The shipped file of that name is read by `{SHIPPED[name]}`."
    assert use in error("fit", "--config", name)


@pytest.mark.parametrize(
    "words",
    [
        ("fit", "--config", "uce.yaml", "--run_dir", ""),
        ("test", "--ckpt_path="),
        ("compose", "a", "--out", ""),
    ],
)
def test_an_empty_path_is_not_the_working_folder(error, words):
    assert "needs a path; found an empty text." in error(*words)


@pytest.mark.parametrize(
    "words", [("fit", "--config"), ("test", "--ckpt_path"), ("report",), ("benchmark",)]
)
def test_a_name_that_is_too_long_for_a_file(error, words):
    assert error(*words, "x" * 5000)


def test_a_score_into_a_file_is_refused_before_anything_is_scored(error, folder):
    (folder / "drawn").mkdir()
    Image.new("RGB", (8, 8)).save(folder / "drawn" / "a.png")
    (folder / "file").touch()
    message = "--run_dir needs a folder for score.json; found the file file."
    assert error("score", "drawn", "--metrics", "nudenet", "--run_dir", "file") == message


@pytest.mark.parametrize("threshold", ["1.5", "-1", "nan"])
def test_a_threshold_that_would_count_all_or_nothing(error, threshold):
    words = ("score", "drawn", "--metrics", "nudenet", "--threshold", threshold)
    assert "--threshold" in error(*words)


def test_all_devices_of_a_processor(error):
    words = [*TINY, "--trainer.devices", "-1"]
    assert error("fit", *words) == (
        "`devices` selected with `CPUAccelerator` should be an int > 0."
    )
