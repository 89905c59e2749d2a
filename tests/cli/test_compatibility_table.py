"""The compatibility tables: from the classes, and as the docs have them."""

import runpy
from pathlib import Path

import pytest
from trivial import PlainPrompt
from under_attack import tiny_target

from erasure_lightning.attacks import ATTACKS
from erasure_lightning.backbones.tiny import TinyFlux
from erasure_lightning.cli.list_commands import run_methods
from erasure_lightning.errors import ErasureError
from erasure_lightning.methods import METHODS

ROOT = Path(__file__).resolve().parents[2]


def test_the_docs_have_the_tables_that_the_code_gives():
    script = runpy.run_path(str(ROOT / "benchmarks/compatibility.py"))
    document = script["DOCUMENT"].read_text(encoding="utf-8")
    assert script["renewed"](document) == document, "run python benchmarks/compatibility.py"
    assert all(f"| {name} |" in document for name in (*METHODS, *ATTACKS))


def test_a_command_prints_the_table(capsys):
    run_methods(["--families"])
    lines = capsys.readouterr().out.splitlines()
    first, _, *rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    cells = {row[0]: row[first.index("FLUX.1")] for row in rows}
    assert cells["ESD"] == "yes"
    assert cells["TRCE"] == "no: needs cross-attention"


def test_an_attack_is_refused_where_the_family_lacks_what_it_needs():
    class Reader(PlainPrompt):
        needs = frozenset({"one vocabulary"})

    with pytest.raises(ErasureError, match="Reader needs one vocabulary, which TinyFlux does not"):
        Reader().run(tiny_target(family=TinyFlux), 0)
