"""A benchmark's table, pages and plot, as files in its folder."""

from collections.abc import Sequence
from pathlib import Path

from erasure_lightning.benchmark.jobs import Job, Status
from erasure_lightning.benchmark.pareto import plot_pareto
from erasure_lightning.benchmark.summary import summarize
from erasure_lightning.benchmark.summary_tables import latex, markdown, summary_tables
from erasure_lightning.benchmark.table import check_protocols, save_table, table_rows
from erasure_lightning.errors import ErasureError
from erasure_lightning.files.writing import write_atomically


def write_summary(name: str, folder: Path, jobs: Sequence[Job]) -> str:
    """Write ``table.csv`` and, once a job has finished, summary and Pareto plot.

    Args:
        name: Name of the benchmark.
        folder: Its folder.
        jobs: All its jobs.

    Returns:
        The summary in Markdown; empty if no job has finished.

    Raises:
        ErasureError: If jobs were measured differently.
    """
    table, protocols = table_rows(jobs)
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


def require_no_failure(jobs: Sequence[Job]) -> None:
    """Raise if jobs failed.

    Raises:
        ErasureError: With the number of them and the message of the first.
    """
    failed = [job for job in jobs if job.status is Status.FAILED]
    if failed:
        message = failed[0].failure.read_text(encoding="utf-8").strip()
        raise ErasureError(
            f"{len(failed)} of {len(jobs)} cells failed; run again to retry them. The first,"
            f" {failed[0]}: {message}"
        )
