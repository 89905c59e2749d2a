import sys

import pytest
from small_suites import PROGRAM, outcome, result, suite

from erasure_lightning.benchmark import engine
from erasure_lightning.benchmark.jobs import list_jobs


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Lets jobs run a program that writes the files of `erasure` without a model."""
    folder = tmp_path / "templates"
    folder.mkdir()
    result().save(folder / "metrics.json")
    outcome().save(folder / "attack.json")
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.replace("TEMPLATES", f"pathlib.Path({str(folder)!r})"))
    monkeypatch.setattr(engine, "_PROGRAM", (sys.executable, str(program)))
    return program


@pytest.fixture
def make_jobs(tmp_path):
    """Makes the jobs of a suite of `small_suites.suite`."""
    return lambda *args, **methods: list_jobs(suite(*args, **methods), tmp_path / "out")
