import sys

import pytest
from small_suites import PROGRAM, outcome, result, suite

from erasure_lightning.benchmark import engine
from erasure_lightning.benchmark.jobs import cells


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Lets cells run a program that does nothing for as long as it is told to."""
    folder = tmp_path / "templates"
    folder.mkdir()
    result().save(folder / "metrics.json")
    outcome().save(folder / "attack.json")
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.replace("TEMPLATES", f"pathlib.Path({str(folder)!r})"))
    monkeypatch.setattr(engine, "PROGRAM", (sys.executable, str(program)))
    return program


@pytest.fixture
def made(tmp_path):
    """Makes the cells of such a suite."""
    return lambda *args, **methods: cells(suite(*args, **methods), tmp_path / "out")
