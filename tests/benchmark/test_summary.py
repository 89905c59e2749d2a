import csv
import json

import pytest
from small_suites import outcome, result, suite

from erasure_lightning.benchmark.jobs import cells
from erasure_lightning.benchmark.pages import Table, escaped, latex, markdown, tables
from erasure_lightning.benchmark.pareto import plot_pareto
from erasure_lightning.benchmark.summary import erasure, summarize
from erasure_lightning.benchmark.table import check_protocols, rows, save
from erasure_lightning.errors import ErasureError

#: Own, domain and retain of each method on cat and dog; None where a cell is missing.
FIGURES = {
    "good": [(0.0, 0.0, 0.9), (0.0, 0.5, 0.9)],
    "kind": [(0.5, 0.5, 1.0), (0.5, 0.5, 1.0)],
    "poor": [(0.5, 0.5, 0.9), (0.5, 0.5, 0.8)],
    "half": [(0.0, 0.0, 1.0), None],
}


@pytest.fixture
def measured(tmp_path):
    """Cells with those figures; half's second one failed."""
    every = cells(suite(attacks=["P4D"], **{name: {} for name in FIGURES}), tmp_path / "out")
    for cell, figures in zip(every, (f for both in FIGURES.values() for f in both), strict=True):
        if figures is None:
            cell.run.root.mkdir(parents=True)
            cell.failure.write_text("it broke\n")
            continue
        result(*figures).save(cell.run.metrics)
        cell.run.edit.touch()
        cell.run.cost.write_text(json.dumps({"seconds": 3.0, "steps": 1}))
        outcome(0.25).save(cell.outcome(cell.suite.attacks[0]))
    return every


@pytest.fixture
def table(measured):
    return rows(measured)[0]


@pytest.fixture
def standings(table):
    return {standing.method: standing for standing in summarize(table).standings}


class TestTable:
    def test_a_row_a_cell_with_figures_intervals_and_cost(self, table):
        assert len(table) == 8
        first = table[0]
        assert (first["method"], first["concept"], first["group"], first["seed"]) == (
            "good",
            "cat",
            "thing",
            0,
        )
        assert (first["status"], first["specificity"], first["specificity_low"]) == (
            "finished",
            0.9,
            0.0,
        )
        assert (first["efficacy"], first["efficacy_before"], first["seconds"]) == (0.0, 1.0, 3.0)
        assert (first["attack_P4D"], first["attack_P4D_high"]) == (0.25, 1.0)
        assert first["harmonic"] == pytest.approx(3 / (1 + 1 + 1 / 0.9))

    def test_what_was_not_measured_is_nothing_and_not_zero(self, table):
        failed = table[-1]
        assert (failed["status"], failed["message"]) == ("failed", "it broke")
        assert {
            failed[name]
            for name in ("efficacy", "specificity", "harmonic", "attack_P4D", "seconds")
        } == {None}

    def test_csv_parquet_and_protocols_hold_the_same(self, measured, tmp_path):
        parquet = pytest.importorskip("pyarrow.parquet")
        table, protocols = rows(measured)
        save(tmp_path, table, protocols)
        assert parquet.read_table(tmp_path / "table.parquet").to_pylist() == table
        with (tmp_path / "table.csv").open(newline="") as file:
            read = list(csv.DictReader(file))
        assert [row["efficacy"] for row in read] == [
            "0.0",
            "0.0",
            "0.5",
            "0.5",
            "0.5",
            "0.5",
            "0.0",
            "",
        ]
        assert (
            json.loads((tmp_path / "protocols.json").read_text())[read[0]["protocol"]]["steps"] == 2
        )

    def test_cells_of_one_concept_measured_differently_are_refused(self, measured):
        check_protocols(*rows(measured))
        result(steps=5).save(measured[2].run.metrics)
        with pytest.raises(
            ErasureError,
            match="good cat seed 0 and kind cat seed 0 were measured .* in steps: 2 and 5",
        ):
            check_protocols(*rows(measured))


class TestSummary:
    def test_means_are_over_concepts(self, standings):
        assert standings["good"].figures["generality"][:3] == (0.25, 0.0, 0.5)
        assert standings["poor"].figures["specificity"].mean == pytest.approx(0.85)
        assert standings["good"].figures["attack_P4D"] == (0.25, 0.25, 0.25)

    def test_erasure_is_the_harmonic_mean_of_what_was_measured(self):
        assert erasure({"efficacy": 0.0, "generality": 0.5}) == pytest.approx(2 / 3)
        assert erasure({"efficacy": 0.25, "generality": None}) == 0.75
        assert erasure({"efficacy": 1.0, "generality": 0.0}) == 0.0
        assert erasure({"efficacy": None, "generality": None}) is None

    def test_ranks_by_hand(self, standings):
        assert standings["good"].ranks["efficacy"] == 1.0
        assert standings["kind"].ranks["efficacy"] == standings["poor"].ranks["efficacy"] == 2.5
        assert standings["good"].ranks["generality"] == pytest.approx(
            (1 + 2) / 2
        )  # on the dog all three tie
        assert standings["good"].ranks["specificity"] == pytest.approx((2.5 + 2) / 2)
        assert {s.ranks["attack_P4D"] for s in standings.values() if s.complete} == {2.0}

    def test_a_method_with_missing_cells_has_no_rank_and_no_place(self, standings):
        half = standings["half"]
        assert (half.finished, half.cells, half.complete) == (1, 2, False)
        assert (half.ranks, half.on_front, half.contribution) == ({}, False, 0.0)
        assert half.figures["specificity"].mean == 1.0

    def test_front_and_hypervolume(self, table, standings):
        assert [name for name, s in standings.items() if s.on_front] == ["good", "kind"]
        good, kind = (1 + 2 / 3) / 2, 0.5
        area = good * 0.9 + kind * 0.1
        assert summarize(table).hypervolume == pytest.approx(area)
        assert standings["good"].contribution == pytest.approx(area - kind)
        assert standings["kind"].contribution == pytest.approx(kind * 0.1)
        assert standings["poor"].contribution == pytest.approx(0.0)

    def test_the_best_come_first_and_the_incomplete_last(self, table):
        assert [s.method for s in summarize(table).standings] == ["good", "kind", "poor", "half"]

    def test_nothing_finished_is_no_summary(self, table):
        with pytest.raises(ErasureError, match="at least one finished cell"):
            summarize([row for row in table if row["status"] == "failed"])


class TestPages:
    def test_markdown_has_every_table(self, table):
        page = markdown(tables(summarize(table), table))
        assert "| good | 2/2 | 0.000 [0.000, 0.000] | 0.250 [0.000, 0.500] |" in page
        assert "| half | 1/2 |" in page
        assert "| dog | thing | 0.730 | 0.600 | 0.571 | failed |" in page
        assert "attack P4D ↓" in page
        assert page.count("| --- |") == 3

    def test_a_method_that_was_not_begun_is_named_and_stands_in_no_table(self, table):
        idle = [row | {"status": "missing"} if row["method"] == "half" else row for row in table]
        page = markdown(tables(summarize(idle), idle))
        assert "Not run: half." in page
        assert "| half" not in page
        assert "Not run" not in markdown(tables(summarize(table), table))

    def test_latex_says_what_is_meant(self):
        assert (
            escaped("a_b & 50% {x} \\y ~ ^ #1 $2")
            == r"a\_b \& 50\% \{x\} \textbackslash{}y \textasciitilde{} \textasciicircum{} \#1 \$2"
        )

    def test_latex_is_balanced_and_escaped(self, table):
        table = [
            row | {"concept": row["concept"].replace("cat", "50% cat_1 & {co}")} for row in table
        ]
        page = latex(tables(summarize(table), table))
        assert page.count("\\begin{") == page.count("\\end{") == 6
        assert r"50\% cat\_1 \& \{co\} & thing & " in page
        assert all(
            line.endswith(r" \\")
            for line in page.splitlines()
            if " & " in line and "caption" not in line
        )
        body = page.replace(r"\{", "").replace(r"\}", "")
        assert body.count("{") == body.count("}")

    def test_a_pipe_in_a_name_does_not_end_a_cell(self):
        assert r"a\|b" in markdown([Table("", ["x"], [["a|b"]])])

    def test_the_plot_is_a_picture(self, table):
        assert plot_pareto(summarize(table), "pets").startswith(b"\x89PNG")
