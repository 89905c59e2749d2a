"""A benchmark's table, pages and plot, as files in its folder."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from erasure_lightning.benchmark.jobs import Status
from erasure_lightning.benchmark.pareto import plot_pareto
from erasure_lightning.benchmark.summary import summarize
from erasure_lightning.benchmark.summary_tables import latex, markdown, summary_tables
from erasure_lightning.benchmark.table import CellRow, cell_name, check_protocols, save_table
from erasure_lightning.errors import ErasureError
from erasure_lightning.files.writing import write_atomically
from erasure_lightning.metrics.protocol import Protocol


def write_summary(
    name: str, folder: Path, table: Sequence[CellRow], protocols: Mapping[str, Protocol]
) -> str:
    """Write ``table.csv`` and, once a job has finished, summary and Pareto plot.

    Args:
        name: Name of the benchmark.
        folder: Its folder.
        table: The rows of all its jobs.
        protocols: Their protocols, by identity.

    Returns:
        The summary in Markdown; empty if no job has finished.

    Raises:
        ErasureError: If jobs were measured differently.
    """
    save_table(folder, table, protocols)
    check_protocols(table, protocols)
    if not any(row["status"] == Status.FINISHED for row in table):
        return ""
    summary = summarize(table)
    pages = summary_tables(summary, table)
    text = markdown(pages)
    has_plot = any(s.erasure and s.retention for s in summary.methods)
    plot = "![Pareto plot](pareto.png)\n\n" if has_plot else ""
    write_atomically(folder / "summary.md", f"# {name}\n\n{plot}{text}".encode())
    write_atomically(folder / "summary.tex", latex(pages).encode())
    if has_plot:
        write_atomically(folder / "pareto.png", plot_pareto(summary, name))
    return text


def require_no_failure(table: Sequence[CellRow]) -> None:
    """Raise if jobs failed.

    Raises:
        ErasureError: With the number of them and the message of the first.
    """
    failed = [row for row in table if row["status"] == Status.FAILED]
    if failed:
        raise ErasureError(
            f"{len(failed)} of {len(table)} cells failed; run again to retry them. The first,"
            f" {cell_name(failed[0])}: {failed[0]['message']}"
        )
