"""Tables of a benchmark's summary, in Markdown and in LaTeX."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import NamedTuple

from erasure_lightning.benchmark.jobs import Status
from erasure_lightning.benchmark.statistics import Interval
from erasure_lightning.benchmark.summary import (
    Summary,
    higher_is_better,
    means_over_concepts,
    rows_of,
)
from erasure_lightning.benchmark.table import CellRow

#: Text of a cell without a value.
_NOT_MEASURED = "-"

#: Characters with a meaning of their own in LaTeX, and how they are written there.
_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "↓": r"$\downarrow$",
    "↑": r"$\uparrow$",
}


class SummaryTable(NamedTuple):
    """A table whose first column holds names.

    Args:
        title: What it shows and how it is read.
        head: Names of the columns.
        rows: Texts of the cells, a list a row.
    """

    title: str
    head: list[str]
    rows: list[list[str]]


def summary_tables(summary: Summary, table: Sequence[CellRow]) -> list[SummaryTable]:
    """Tables of means, also by kind, of ranks among methods, and of concepts, where there are any.

    Methods without a started cell are named in the first title, and are in no table.
    """
    started = {row["method"] for row in table if row["status"] != Status.MISSING}
    shown = replace(summary, methods=tuple(m for m in summary.methods if m.method in started))
    missing = [m.method for m in summary.methods if m.method not in started]
    means = _means(shown, table)
    if missing:
        means = means._replace(title=f"{means.title} Not run: {', '.join(missing)}.")
    tables = [means]
    if len({row["group"] for row in table}) > 1:
        tables.append(_kinds(shown, table))
    if len(shown.methods) > 1:
        tables.append(_ranks(shown))
    if "harmonic" in summary.figures:
        tables.append(_concepts(shown, table))
    return tables


def _means(summary: Summary, table: Sequence[CellRow]) -> SummaryTable:
    rows = [
        [
            method.method,
            f"{method.finished}/{method.cells}",
            *_texts(method.figures, summary),
            _NOT_MEASURED if method.seconds is None else f"{method.seconds:.0f}",
        ]
        for method in summary.methods
    ]
    title = (
        f"{_title_of_means(table)} Where not all cells are finished, the mean is over those that"
        " are."
    )
    head = ["method", "cells", *_figure_names(summary, table), "seconds"]
    return SummaryTable(title, head, rows)


def _kinds(summary: Summary, table: Sequence[CellRow]) -> SummaryTable:
    """The means of each kind of concept."""
    rows = []
    for method in summary.methods:
        for kind in dict.fromkeys(row["group"] for row in table):
            cells = [row for row in rows_of(table, method.method) if row["group"] == kind]
            finished = [row for row in cells if row["status"] == Status.FINISHED]
            means = means_over_concepts(finished, summary.figures)
            share = f"{len(finished)}/{len(cells)}"
            rows.append([method.method, kind, share, *_texts(means, summary)])
    head = ["method", "kind", "cells", *_figure_names(summary, table)]
    return SummaryTable("The same means by kind of concept.", head, rows)


def _figure_names(summary: Summary, table: Sequence[CellRow]) -> list[str]:
    """The figures as heads of columns, with the direction that is better."""
    higher = higher_is_better(table)
    return [f"{f.replace('_', ' ')} {'↑' if higher[f] else '↓'}" for f in summary.figures]


def _texts(means: Mapping[str, Interval], summary: Summary) -> list[str]:
    """The means of all figures of a summary."""
    return [str(means.get(figure, _NOT_MEASURED)) for figure in summary.figures]


def _title_of_means(table: Sequence[CellRow]) -> str:
    seeds = len({row["seed"] for row in table})
    if seeds == 1 == len({row["concept"] for row in table}):
        return "Figures of one concept with one training seed, of which there are no intervals."
    within = f", and of the {seeds} training seeds within each" if seeds > 1 else ""
    within = within or " (one training seed)"
    return (
        "Means over concepts, with 95 % bootstrap intervals over resamples of the"
        f" concepts{within}."
    )


def _ranks(summary: Summary) -> SummaryTable:
    ranks = [f"rank: {figure.replace('_', ' ')}" for figure in summary.figures]
    rows = []
    for method in summary.methods:
        coordinates = (method.erasure, method.retention)
        row = [method.method]
        row += [_NOT_MEASURED if value is None else str(value) for value in coordinates]
        row += [
            f"{method.ranks[figure]:.2f}" if figure in method.ranks else _NOT_MEASURED
            for figure in summary.figures
        ]
        if method.complete and all(coordinates):
            row += ["yes" if method.on_front else "no", f"{method.contribution:.4f}"]
        else:
            row += [_NOT_MEASURED, _NOT_MEASURED]
        rows.append(row)
    area = _NOT_MEASURED if summary.hypervolume is None else f"{summary.hypervolume:.4f}"
    title = (
        "Mean ranks over concepts among the methods whose cells are all finished (1 is best, ties"
        " share their places); erasure: harmonic mean of 1 - efficacy and 1 - generality;"
        " retention: specificity; front: no other method is as good in both and better in one;"
        f" adds: to the hypervolume that all of them dominate above (0, 0), which is {area}."
    )
    head = ["method", "erasure ↑", "retention ↑", *ranks, "front", "adds"]
    return SummaryTable(title, head, rows)


def _concepts(summary: Summary, table: Sequence[CellRow]) -> SummaryTable:
    methods = [method.method for method in summary.methods]
    groups = {row["concept"]: row["group"] for row in table}
    cells: dict[tuple[str, str], list[CellRow]] = {}
    for row in table:
        cells.setdefault((row["concept"], row["method"]), []).append(row)
    rows = [
        [concept, group, *(_harmonic(cells[concept, method]) for method in methods)]
        for concept, group in groups.items()
    ]
    title = (
        "Harmonic mean of 1 - efficacy, 1 - generality (where a domain is named) and specificity,"
        " by concept; a dash is a cell not run."
    )
    return SummaryTable(title, ["concept", "kind", *methods], rows)


def _harmonic(rows: Sequence[CellRow]) -> str:
    """Mean over seeds of the harmonic mean, as text."""
    finished = [row for row in rows if row["status"] == Status.FINISHED]
    values = [row["harmonic"] for row in finished if row["harmonic"] is not None]
    if values:
        return f"{fmean(values):.3f}"
    return "failed" if any(row["status"] == Status.FAILED for row in rows) else _NOT_MEASURED


def markdown(tables: Sequence[SummaryTable]) -> str:
    """Tables in Markdown."""
    return "\n\n".join(f"{table.title}\n\n{_pipe_table(table)}" for table in tables) + "\n"


def _pipe_table(table: SummaryTable) -> str:
    alignment = ["---", *["---:"] * (len(table.head) - 1)]
    lines = []
    for row in (table.head, alignment, *table.rows):
        cells = " | ".join(text.replace("|", r"\|") for text in row)
        lines.append(f"| {cells} |")
    return "\n".join(lines)


def latex(tables: Sequence[SummaryTable]) -> str:
    """Tables in LaTeX; they need the package booktabs."""
    return "\n\n".join(map(_float, tables)) + "\n"


def _float(table: SummaryTable) -> str:
    head, *rows = (
        " & ".join(map(escape_latex, cells)) + r" \\" for cells in (table.head, *table.rows)
    )
    columns = "l" + "r" * (len(table.head) - 1)
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{escape_latex(table.title)}}}",
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            head,
            r"\midrule",
            *rows,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
    )


def escape_latex(text: str) -> str:
    """Text that LaTeX prints character by character."""
    return "".join(_LATEX.get(character, character) for character in text)
