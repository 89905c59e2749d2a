import importlib
import shutil
import subprocess
import sys
import tomllib
from functools import partial
from pathlib import Path

import pytest
from packages import install

import erasure_lightning.methods
from erasure_lightning.__main__ import main
from erasure_lightning.api.configs import config_content
from erasure_lightning.backbones.tiny import TINY_BACKBONES
from erasure_lightning.cli.new_method import TABLE, class_name, module_name
from erasure_lightning.errors import ErasureError
from erasure_lightning.testing import check_method

ROOT = Path(__file__).parents[2]

SHAPES = pytest.mark.parametrize("shape", [[], ["--closed_form"]], ids=["gradient", "closed form"])


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """An empty folder to write into, whose modules are forgotten afterwards."""
    before = set(sys.modules)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in set(sys.modules) - before:
        if "my_method" in name:
            del sys.modules[name]


@pytest.fixture
def checkout(folder):
    """As much of a checkout as the command and the house tests read."""
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("erasure_lightning", "configs", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def run(*argv):
    assert main(["new-method", *argv]) == 0


def refused(capsys, *argv):
    """The one line that the command ends with."""
    assert main(["new-method", *argv]) == 2
    (message,) = capsys.readouterr().err.splitlines()
    return message.removeprefix("erasure: error: ")


def files(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def pass_their_own_tests(folder, monkeypatch, **less):
    monkeypatch.syspath_prepend(folder)
    written = importlib.import_module("test_my_method")
    monkeypatch.setattr(written, "check_method", partial(check_method, **less))
    tests = [value for name, value in vars(written).items() if name.startswith("test_")]
    assert len(tests) == 2
    for test in tests:
        test()


def ruff(*argv):
    return subprocess.run([sys.executable, "-m", "ruff", *argv], capture_output=True, text=True)


def check_with_ruff(*paths):
    pytest.importorskip("ruff")
    for command in (["check", "--no-cache"], ["format", "--check", "--no-cache"]):
        done = ruff(*command, *paths)
        assert done.returncode == 0, done.stdout


# names


@pytest.mark.parametrize(
    ("text", "name", "module"),
    [
        ("MyMethod", "MyMethod", "my_method"),
        ("my-method", "MyMethod", "my_method"),
        ("my_method", "MyMethod", "my_method"),
        ("SAGE2", "SAGE2", "sage2"),
        ("MyESD", "MyESD", "my_esd"),
        ("ESDPlus", "ESDPlus", "esd_plus"),
    ],
)
def test_names(text, name, module):
    assert (class_name(text), module_name(name)) == (name, module)


@pytest.mark.parametrize(
    "text", ["", "-", "2fast", "my method", "a.b", "../up", "Möbius", "class", "None"]
)
def test_what_python_allows_for_no_class_is_refused(text):
    with pytest.raises(ErasureError, match="allows for a class, such as MyMethod; found"):
        class_name(text)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["SAGE"], "The name SAGE is taken by the method of erasure-lightning "),
        (["sage"], "The name Sage is taken by the method of erasure-lightning "),
        (["NoisyBatch"], "The name NoisyBatch is taken by what every method or its test imports"),
        (["Concept"], "The name Concept is taken by what every method or its test imports"),
        (["SageHeart"], "The name SageHeart is taken by the config "),
        (["Lightning"], "The name Lightning is taken by an installed package, erasure_lightning"),
    ],
)
def test_a_name_that_somebody_has_is_refused(capsys, folder, argv, message):
    assert refused(capsys, *argv, "--plugin").startswith(message)
    assert not files(folder)


# in a checkout


@SHAPES
def test_in_a_checkout_a_method_passes_its_tests(checkout, shape, monkeypatch):
    before = files(checkout)
    run("my-method", *shape)
    method = "erasure_lightning/methods/my_method.py"
    assert files(checkout) - before == {
        method,
        "configs/my-method.yaml",
        "tests/methods/test_my_method.py",
    }
    check_with_ruff(method, "tests/methods/test_my_method.py", str(TABLE))
    theirs = [str(checkout / "erasure_lightning/methods"), *erasure_lightning.methods.__path__]
    monkeypatch.setattr(erasure_lightning.methods, "__path__", theirs)
    # On every family; thoroughly, on one, where it is a package's: it is the same class.
    pass_their_own_tests(checkout / "tests/methods", monkeypatch, thorough=False)


def house_rules(checkout):
    """Of the copy, not of this repository."""
    code = (
        "import test_house as t; [f() for name, f in vars(t).items() if name.startswith('test_')]"
    )
    path = {"PYTHONPATH": f"{checkout}:{checkout / 'tests'}"}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=checkout, env=path, capture_output=True, text=True
    )


def test_in_a_checkout_the_house_rules_hold(checkout):
    run("MyMethod")
    assert house_rules(checkout).returncode == 0
    (checkout / "configs/my-method.yaml").unlink()
    assert "AssertionError" in house_rules(checkout).stderr


def test_in_a_checkout_the_table_gets_its_line(checkout):
    before = (checkout / TABLE).read_text()
    run("MyMethod")
    table = {}
    exec((checkout / TABLE).read_text(), table)
    name, line = list(table["METHODS"].items())[-1]
    assert (name, line.target) == ("MyMethod", "erasure_lightning.methods.my_method:MyMethod")
    assert len(table["METHODS"]) == len(erasure_lightning.methods.METHODS) + 1
    assert (checkout / TABLE).read_text().startswith(before.rstrip("}\n"))


def test_without_a_checkout_the_plugin_is_advised(capsys, folder):
    assert refused(capsys, "MyMethod").endswith(
        f"needs a checkout of erasure_lightning; {folder} is none. "
        "Change to one, or add --plugin to write a package of its own."
    )
    assert not files(folder)


@pytest.mark.parametrize("there", ["configs/my-method.yaml", "tests/methods/test_my_method.py"])
def test_in_a_checkout_nothing_is_overwritten(capsys, checkout, there):
    (checkout / there).write_text("mine")
    before = {path: path.read_bytes() for path in checkout.rglob("*") if path.is_file()}
    assert (
        refused(capsys, "MyMethod")
        == f"{there} exists already, and is not overwritten. Choose another name."
    )
    assert {path: path.read_bytes() for path in checkout.rglob("*") if path.is_file()} == before


def test_a_table_that_is_not_where_it_was_is_left_alone(capsys, checkout):
    (checkout / TABLE).write_text("METHODS = load()\n")
    assert "to end with the table METHODS" in refused(capsys, "MyMethod")
    assert not (checkout / "configs/my-method.yaml").exists()


# in a package of its own


@SHAPES
def test_a_package_passes_its_own_tests(folder, shape, monkeypatch):
    run("MyMethod", "--plugin", *shape)
    check_with_ruff("erasure-my-method")
    monkeypatch.syspath_prepend(folder / "erasure-my-method")
    tests = folder / "erasure-my-method/tests"
    pass_their_own_tests(tests, monkeypatch, families=TINY_BACKBONES[:1])


def test_a_package_announces_its_method(folder):
    run("MyMethod", "--plugin")
    project = tomllib.loads((folder / "erasure-my-method/pyproject.toml").read_text())["project"]
    assert project["name"] == "erasure-my-method"
    assert project["entry-points"] == {
        "erasure_lightning.methods": {"MyMethod": "erasure_my_method.my_method:MyMethod"}
    }
    assert files(folder / "erasure-my-method") >= {"erasure_my_method/my_method.py", "README.md"}


@SHAPES
def test_an_installed_package_is_run_by_the_name_of_its_config(folder, shape, monkeypatch, capsys):
    pytest.importorskip("erasure_lightning_emoji_world")
    run("MyMethod", "--plugin", *shape)
    root = folder / "erasure-my-method"
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    install(root, "erasure_my_method", project["entry-points"]["erasure_lightning.methods"])
    with pytest.raises(ErasureError, match="unknown config"):
        config_content("my-method")
    monkeypatch.syspath_prepend(root)
    quick = [
        "--trainer.fast_dev_run",
        "true",
        "--trainer.accelerator",
        "cpu",
        "--trainer.enable_progress_bar",
        "false",
    ]
    capsys.readouterr()
    assert main(["fit", "--config", "my-method", *quick]) == 0
    assert "fast_dev_run neither writes nor measures an edit" in capsys.readouterr().out


def test_a_package_is_not_written_over_another(capsys, folder):
    (folder / "erasure-my-method").mkdir()
    assert refused(capsys, "MyMethod", "--plugin").startswith("erasure-my-method exists already")
    assert not files(folder)


def test_it_says_what_it_wrote_and_what_comes_next(capsys, folder):
    run("MyMethod", "--plugin", "--folder", "new ones")
    *wrote, following, install, test, fit = capsys.readouterr().out.splitlines()
    assert {line.removeprefix("wrote ") for line in wrote} == files(folder)
    assert [following, install, test, fit] == [
        "Next:",
        "  pip install -e 'new ones/erasure-my-method'",
        "  pytest 'new ones/erasure-my-method'",
        "  erasure fit --config my-method.yaml",
    ]


def test_a_folder_that_cannot_be_written_is_one_line(capsys, folder):
    (folder / "file").touch()
    assert "could not be used" in refused(capsys, "MyMethod", "--plugin", "--folder", "file")
