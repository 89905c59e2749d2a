"""The report and the model card of runs, as files."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from erasure_lightning.errors import ErasureError
from erasure_lightning.files.writing import write_atomically
from erasure_lightning.report.card import render_card
from erasure_lightning.report.page import GENERATOR, render_page
from erasure_lightning.report.run_record import read_run_record
from erasure_lightning.runs.folder import run_of

#: The page, and the model card.
PAGE_FILE = "report.html"
CARD_FILE = "model_card.md"


class ReportFiles(NamedTuple):
    """What `write_report` wrote.

    Args:
        paths: The page, and the card if there is one.
        notes: What is left out because a file could not be read, a sentence each.
    """

    paths: list[Path]
    notes: list[str]


def write_report(
    runs: Sequence[Path], run_dir: Path | None = None, *, with_card: bool = False
) -> ReportFiles:
    """Write the page about one run or several side by side, and a model card.

    A page that this function wrote is replaced; no other file is, nor a card, which may have been
    edited.

    Args:
        runs: Folders of runs, or of ``erasure test``.
        run_dir: Folder to write into; the run's own by default, required for several runs.
        with_card: Whether to write a model card for the Hugging Face Hub too, about a single run.

    Raises:
        ErasureError: If a run cannot be read, or a file would be overwritten.
    """
    folder = _folder(runs, run_dir)
    _check_page(folder / PAGE_FILE)
    if with_card:
        _check_card(folder / CARD_FILE, runs)
    records = [read_run_record(run) for run in runs]
    contents = {folder / PAGE_FILE: render_page(records)}
    if with_card:
        contents[folder / CARD_FILE] = render_card(records[0])
    for path, text in contents.items():
        write_atomically(path, text.encode(errors="replace"))  # JSON may hold a lone surrogate
    notes = [f"{record.name}: {note}" for record in records for note in record.notes]
    return ReportFiles(list(contents), notes)


def _folder(runs: Sequence[Path], run_dir: Path | None) -> Path:
    if run_dir is None and len(runs) > 1:
        raise ErasureError(
            f"erasure report of {len(runs)} runs needs a folder for its page: give --run_dir DIR."
        )
    folder = run_dir or run_of(runs[0]).root
    if folder.is_file():
        raise ErasureError(
            f"erasure report needs a folder to write into; found the file {folder}. Choose another"
            " --run_dir."
        )
    return folder


def _check_page(path: Path) -> None:
    """Raise if a file is there that does not name this command near its beginning."""
    generator = f'<meta name="generator" content="{GENERATOR} '.encode()
    if path.exists() and generator not in path.read_bytes()[:2000]:
        raise ErasureError(
            f"{path} was not written by `erasure report`, and is not overwritten. Choose another"
            " --run_dir."
        )


def _check_card(path: Path, runs: Sequence[Path]) -> None:
    if len(runs) > 1:
        raise ErasureError(
            f"A model card is about one edit; found {len(runs)} runs. Give one, or leave out"
            " --card."
        )
    if path.exists():
        raise ErasureError(
            f"{path} exists already, and is not overwritten: it may have been edited. Move it"
            " first."
        )
