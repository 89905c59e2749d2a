"""A benchmark's summary on paper: the same tables in Markdown and in LaTeX."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import fmean
from typing import NamedTuple

from erasure_lightning.benchmark.jobs import Status
from erasure_lightning.benchmark.summary import Summary, directions
from erasure_lightning.benchmark.table import Row

#: What stands where nothing was measured.
NOTHING = "-"

#: What LaTeX takes for more than it is.
_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", "↓": r"$\downarrow$", "↑": r"$\uparrow$",
}  # fmt: skip


class Table(NamedTuple):
    """A table, the first column being names.

    Args:
        title: What it shows and how to read it.
        head: Names of the columns.
        rows: Cells.
    """

    title: str
    head: list[str]
    rows: list[list[str]]


def tables(summary: Summary, table: Sequence[Row]) -> list[Table]:
    """Means, ranks, and every concept, as far as there is something to recognise pictures by.

    Methods that were not begun are named, and stand in no table.
    """
    begun = {row["method"] for row in table if row["status"] != Status.MISSING}
    idle = [s.method for s in summary.standings if s.method not in begun]
    shown = replace(summary, standings=tuple(s for s in summary.standings if s.method in begun))
    means = _means(shown, table)
    made = [
        means._replace(title=f"{means.title} Not run: {', '.join(idle)}.") if idle else means,
        _ranks(shown, table),
    ]
    return [*made, _concepts(shown, table)] if "harmonic" in summary.figures else made


def _arrow(figure: str, table: Sequence[Row]) -> str:
    return f"{figure.replace('_', ' ')} {'↑' if directions(table)[figure] else '↓'}"


def _means(summary: Summary, table: Sequence[Row]) -> Table:
    head = ["method", "cells", *(_arrow(f, table) for f in summary.figures), "seconds"]
    rows = [
        [
            s.method,
            f"{s.finished}/{s.cells}",
            *(str(s.figures.get(f, NOTHING)) for f in summary.figures),
            NOTHING if s.seconds is None else f"{s.seconds:.0f}",
        ]
        for s in summary.standings
    ]
    seeds = len({row["seed"] for row in table})
    over = "concepts" + (
        f", and of the {seeds} training seeds within each" if seeds > 1 else " (one training seed)"
    )
    return Table(
        "Means over concepts, with 95 % bootstrap intervals over resamples of the "
        f"{over}. Where not all cells are finished, the mean is over those that are.", head, rows,
    )  # fmt: skip


def _ranks(summary: Summary, table: Sequence[Row]) -> Table:
    head = [
        "method",
        "erasure ↑",
        "retention ↑",
        *(f"rank: {f.replace('_', ' ')}" for f in summary.figures),
    ]
    rows = [
        [
            s.method,
            *(NOTHING if e is None else str(e) for e in (s.erasure, s.retention)),
            *(f"{s.ranks[f]:.2f}" if f in s.ranks else NOTHING for f in summary.figures),
            ("yes" if s.on_front else "no") if s.complete and s.erasure else NOTHING,
            f"{s.contribution:.4f}" if s.complete and s.erasure else NOTHING,
        ]
        for s in summary.standings
    ]
    area = NOTHING if summary.hypervolume is None else f"{summary.hypervolume:.4f}"
    return Table(
        "Mean ranks over concepts among the methods whose cells are all finished (1 is best, ties share their places); "
        "erasure: harmonic mean of 1 - efficacy and 1 - generality; retention: specificity; front: no other method is "
        "as good in both and better in one; adds: to the hypervolume that all of them dominate above (0, 0), which is "
        f"{area}.", [*head, "front", "adds"], rows,
    )  # fmt: skip


def _concepts(summary: Summary, table: Sequence[Row]) -> Table:
    methods = [standing.method for standing in summary.standings]
    found: dict[tuple[str, str], list[Row]] = {}
    for row in table:
        found.setdefault((row["concept"], row["method"]), []).append(row)
    groups = {row["concept"]: row["group"] for row in table}
    rows = [
        [concept, group, *(_cell(found[concept, m]) for m in methods)]
        for concept, group in groups.items()
    ]
    return Table(
        "Harmonic mean of 1 - efficacy, 1 - generality (where a domain is named) and specificity, by concept; a dash "
        "is a cell not run.", ["concept", "kind", *methods], rows,
    )  # fmt: skip


def _cell(rows: Sequence[Row]) -> str:
    values = [
        row["harmonic"]
        for row in rows
        if row["status"] == Status.FINISHED and row["harmonic"] is not None
    ]
    if values:
        return f"{fmean(values):.3f}"
    return "failed" if any(row["status"] == Status.FAILED for row in rows) else NOTHING


def markdown(made: Sequence[Table]) -> str:
    """Tables as Markdown."""
    return "\n\n".join(f"{table.title}\n\n{_grid(table)}" for table in made) + "\n"


def _grid(table: Table) -> str:
    rule = ["---", *["---:"] * (len(table.head) - 1)]
    return "\n".join(
        _line(cells, lambda text: text.replace("|", r"\|"))
        for cells in (table.head, rule, *table.rows)
    )


def _line(cells: Sequence[str], escape: Callable[[str], str]) -> str:
    return f"| {' | '.join(escape(cell) for cell in cells)} |"


def latex(made: Sequence[Table]) -> str:
    """Tables as LaTeX; they need the package booktabs."""
    return "\n\n".join(map(_tabular, made)) + "\n"


def _tabular(table: Table) -> str:
    head, *rows = (" & ".join(map(escaped, cells)) + r" \\" for cells in (table.head, *table.rows))
    columns = "l" + "r" * (len(table.head) - 1)
    inside = "\n".join([r"\toprule", head, r"\midrule", *rows, r"\bottomrule"])
    tabular = f"\\begin{{tabular}}{{{columns}}}\n{inside}\n\\end{{tabular}}"
    return f"\\begin{{table}}\n\\centering\n\\caption{{{escaped(table.title)}}}\n{tabular}\n\\end{{table}}"


def escaped(text: str) -> str:
    """Text as LaTeX sets it, sign for sign."""
    return "".join(_LATEX.get(sign, sign) for sign in text)
