import csv
import io
import json
from dataclasses import replace
from unittest.mock import patch

import pytest
from PIL import Image
from small_suites import outcome, result, suite

from erasure_lightning.benchmark.jobs import list_jobs
from erasure_lightning.benchmark.pareto import plot_pareto
from erasure_lightning.benchmark.statistics import Interval
from erasure_lightning.benchmark.summary import erasure_score, higher_is_better, summarize
from erasure_lightning.benchmark.summary_tables import (
    SummaryTable,
    escape_latex,
    latex,
    markdown,
    summary_tables,
)
from erasure_lightning.benchmark.table import check_protocols, save_table, table_rows
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
    """Jobs with these figures; the second one of half failed."""
    jobs = list_jobs(suite(attacks=["P4D"], **{name: {} for name in FIGURES}), tmp_path / "out")
    for job, figures in zip(jobs, (f for both in FIGURES.values() for f in both), strict=True):
        if figures is None:
            job.run.root.mkdir(parents=True)
            job.failure.write_text("it broke\n")
            continue
        result(*figures).save(job.run.metrics)
        job.run.edit.touch()
        job.run.cost.write_text(json.dumps({"seconds": 3.0, "steps": 1}))
        outcome(0.25).save(job.outcome(job.suite.attacks[0]))
    return jobs


@pytest.fixture
def table(measured):
    return table_rows(measured, {})[0]


@pytest.fixture
def methods(table):
    return {method.method: method for method in summarize(table).methods}


class TestTable:
    def test_each_cell_has_a_row_with_figures_intervals_and_cost(self, table):
        assert len(table) == 8
        first = table[0]
        assert [first[name] for name in ("method", "concept", "group")] == ["good", "cat", "thing"]
        assert (first["seed"], first["status"]) == (0, "finished")
        assert (first["specificity"], first["specificity_low"]) == (0.9, 0.0)
        assert (first["efficacy"], first["efficacy_before"], first["seconds"]) == (0.0, 1.0, 3.0)
        assert (first["attack_P4D"], first["attack_P4D_high"]) == (0.25, 1.0)
        assert first["harmonic"] == pytest.approx(3 / (1 + 1 + 1 / 0.9))

    def test_values_that_were_not_measured_are_none(self, table):
        failed = table[-1]
        assert (failed["status"], failed["message"]) == ("failed", "it broke")
        names = ("efficacy", "specificity", "harmonic", "attack_P4D", "seconds")
        assert {failed[name] for name in names} == {None}

    def test_a_cell_with_a_file_that_cannot_be_read_has_failed_and_no_figures(self, measured):
        first, second, third, *_ = measured
        first.run.metrics.write_bytes(b"\xff")
        second.outcome(second.suite.attacks[0]).write_text("[]")
        third.run.cost.write_text("[]")
        rows = table_rows(measured, {})[0]
        assert [row["status"] for row in rows[:4]] == ["failed"] * 3 + ["finished"]
        for row, file in zip(rows, ("metrics.json", "attack.json", "cost.json"), strict=False):
            assert f"{file} needs " in row["message"]
            assert {row[name] for name in ("specificity", "attack_P4D", "seconds")} == {None}

    def test_csv_parquet_and_protocols_hold_the_same(self, measured, tmp_path):
        parquet = pytest.importorskip("pyarrow.parquet")
        table, protocols = table_rows(measured, {})
        save_table(tmp_path, table, protocols)
        assert parquet.read_table(tmp_path / "table.parquet").to_pylist() == table
        with (tmp_path / "table.csv").open(newline="") as file:
            read = list(csv.DictReader(file))
        efficacy = [row["efficacy"] for row in read]
        assert efficacy == ["0.0", "0.0", "0.5", "0.5", "0.5", "0.5", "0.0", ""]
        saved = json.loads((tmp_path / "protocols.json").read_text())
        assert saved[read[0]["protocol"]]["steps"] == 2

    def test_cells_of_one_concept_measured_differently_are_refused(self, measured):
        check_protocols(*table_rows(measured, {}))
        result(steps=5).save(measured[2].run.metrics)
        message = "good cat seed 0 and kind cat seed 0 were measured .* in steps: 2 and 5"
        with pytest.raises(ErasureError, match=message):
            check_protocols(*table_rows(measured, {}))


class TestSummary:
    def test_means_are_over_concepts(self, methods):
        assert methods["good"].figures["generality"][:3] == (0.25, 0.0, 0.5)
        assert methods["poor"].figures["specificity"].mean == pytest.approx(0.85)
        assert methods["good"].figures["attack_P4D"] == (0.25, 0.25, 0.25)

    def test_erasure_is_the_harmonic_mean_of_what_was_measured(self):
        assert erasure_score({"efficacy": 0.0, "generality": 0.5}) == pytest.approx(2 / 3)
        assert erasure_score({"efficacy": 0.25, "generality": None}) == 0.75
        assert erasure_score({"efficacy": 1.0, "generality": 0.0}) == 0.0
        assert erasure_score({"efficacy": None, "generality": None}) is None

    def test_ranks_by_hand(self, methods):
        assert methods["good"].ranks["efficacy"] == 1.0
        assert methods["kind"].ranks["efficacy"] == methods["poor"].ranks["efficacy"] == 2.5
        # On the dog all three tie.
        assert methods["good"].ranks["generality"] == pytest.approx((1 + 2) / 2)
        assert methods["good"].ranks["specificity"] == pytest.approx((2.5 + 2) / 2)
        assert {s.ranks["attack_P4D"] for s in methods.values() if s.complete} == {2.0}

    def test_a_method_with_missing_cells_is_not_ranked(self, methods):
        half = methods["half"]
        assert (half.finished, half.cells, half.complete) == (1, 2, False)
        assert (half.ranks, half.on_front, half.contribution) == ({}, False, 0.0)
        assert half.figures["specificity"].mean == 1.0

    def test_front_and_hypervolume(self, table, methods):
        assert [name for name, s in methods.items() if s.on_front] == ["good", "kind"]
        good, kind = (1 + 2 / 3) / 2, 0.5
        area = good * 0.9 + kind * 0.1
        assert summarize(table).hypervolume == pytest.approx(area)
        assert methods["good"].contribution == pytest.approx(area - kind)
        assert methods["kind"].contribution == pytest.approx(kind * 0.1)
        assert methods["poor"].contribution == pytest.approx(0.0)

    def test_methods_are_ordered_by_rank_and_incomplete_ones_last(self, table):
        assert [s.method for s in summarize(table).methods] == ["good", "kind", "poor", "half"]

    def test_less_of_the_concept_and_smaller_distances_are_better(self, table):
        higher = higher_is_better(table)
        better = {name for name, is_better in higher.items() if is_better}
        assert better == {"neighbours", "specificity", "similarity", "harmonic"}
        assert {"efficacy", "generality", "distance", "attack_P4D"} == higher.keys() - better

    def test_a_summary_needs_a_finished_cell(self, table):
        with pytest.raises(ErasureError, match="at least one finished cell"):
            summarize([row for row in table if row["status"] == "failed"])


class TestSummaryTables:
    def test_markdown_has_every_table(self, table):
        page = markdown(summary_tables(summarize(table), table))
        assert "| good | 2/2 | 0.000 [0.000, 0.000] | 0.250 [0.000, 0.500] |" in page
        assert "| half | 1/2 |" in page
        assert "| dog | thing | 0.730 | 0.600 | 0.571 | failed |" in page
        assert "attack P4D ↓" in page
        assert page.count("| --- |") == 3

    def test_a_method_that_was_not_started_is_named_and_is_in_no_table(self, table):
        missing = [row | {"status": "missing"} if row["method"] == "half" else row for row in table]
        page = markdown(summary_tables(summarize(missing), missing))
        assert "Not run: half." in page
        assert "| half" not in page
        assert "Not run" not in markdown(summary_tables(summarize(table), table))

    def test_one_concept_with_one_seed_has_no_intervals(self, table):
        single = [row for row in table if row["concept"] == "cat"]
        means = summary_tables(summarize(single), single)[0]
        assert means.title.startswith("Figures of one concept with one training seed, of which")
        assert not any("[" in cell for row in means.rows for cell in row)

    def test_a_method_without_retention_has_no_place_on_the_front(self, table):
        """`no`, and an area of 0, would be figures."""
        unmeasured = [row | {"specificity": None, "harmonic": None} for row in table]
        ranks = summary_tables(summarize(unmeasured), unmeasured)[1]
        places = {tuple(row[ranks.head.index("front") :]) for row in ranks.rows}
        assert places == {("-", "-")}

    def test_one_method_has_no_ranks(self, table):
        """Two, the control, have."""
        for names, ranked in ((["good"], False), (["good", "kind"], True)):
            rows = [row for row in table if row["method"] in names]
            assert ("Mean ranks" in markdown(summary_tables(summarize(rows), rows))) == ranked

    def test_kinds_of_concepts_have_means_of_their_own(self, table):
        both = [row | {"group": "style" if row["concept"] == "dog" else "thing"} for row in table]
        kinds = summary_tables(summarize(both), both)[1]
        column = kinds.head.index("efficacy ↓")
        named = {tuple(row[:3]): row[column] for row in kinds.rows}
        assert named["poor", "thing", "1/1"] == named["poor", "style", "1/1"] == "0.500"
        assert named["half", "thing", "1/1"] == "0.000"
        assert named["half", "style", "0/1"] == "-"
        one_kind = [each.title for each in summary_tables(summarize(table), table)]
        assert kinds.title not in one_kind  # the control: a single kind has the same means

    def test_latex_escapes_special_characters(self):
        escaped = (
            r"a\_b \& 50\% \{x\} \textbackslash{}y \textasciitilde{} \textasciicircum{} \#1 \$2"
        )
        assert escape_latex("a_b & 50% {x} \\y ~ ^ #1 $2") == escaped

    def test_latex_is_balanced_and_escaped(self, table):
        for row in table:
            row["concept"] = row["concept"].replace("cat", "50% cat_1 & {co}")
        page = latex(summary_tables(summarize(table), table))
        assert page.count("\\begin{") == page.count("\\end{") == 6
        assert r"50\% cat\_1 \& \{co\} & thing & " in page
        lines = [line for line in page.splitlines() if " & " in line and "caption" not in line]
        assert all(line.endswith(r" \\") for line in lines)
        body = page.replace(r"\{", "").replace(r"\}", "")
        assert body.count("{") == body.count("}")

    def test_a_pipe_in_a_name_does_not_end_a_cell(self):
        assert r"a\|b" in markdown([SummaryTable("", ["x"], [["a|b"]])])

    def test_error_bars_reach_from_the_mean_to_the_ends(self, table):
        summary = summarize(table)
        intervals = {
            "erasure": Interval(0.5, 0.2, 0.6),
            "retention": Interval(0.7, 0.6, 0.9),
        }
        wide = replace(summary.methods[0], **intervals)
        with patch("matplotlib.axes.Axes.errorbar") as errorbar:
            plot_pareto(replace(summary, methods=(wide,)), "pets")
        bars = errorbar.call_args.kwargs
        assert bars["xerr"].ravel().tolist() == pytest.approx([0.3, 0.1])
        assert bars["yerr"].ravel().tolist() == pytest.approx([0.1, 0.2])

    def test_dollar_signs_in_names_are_no_formulas_of_a_plot(self, table):
        method = replace(summarize(table).methods[0], method="from $5 to $x^{2$")
        plot = plot_pareto(replace(summarize(table), methods=(method,)), "$x^$")
        assert plot.startswith(b"\x89PNG")

    def test_a_plot_is_as_large_as_long_names_and_many_methods_need(self, table):
        """The axes keep their size; their label was cut."""
        summary = summarize(table)
        (short, *_) = summary.methods
        long = [replace(short, method=f"{number} {'long ' * 12}") for number in range(30)]
        plots = [plot_pareto(replace(summary, methods=ms), "pets") for ms in ([short], long)]
        small, large = (Image.open(io.BytesIO(plot)).size for plot in plots)
        assert large[0] > small[0] + 300
        assert large[1] > small[1] + 100

    def test_the_plot_is_a_png(self, table):
        assert plot_pareto(summarize(table), "pets").startswith(b"\x89PNG")
