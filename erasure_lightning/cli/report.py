"""``erasure report``: runs as a page to send to a colleague, and as a model card."""

from pathlib import Path

from erasure_lightning.cli.arguments import Arguments
from erasure_lightning.errors import ErasureError
from erasure_lightning.files.writing import write_atomically
from erasure_lightning.runs.folder import run_of

PAGE, CARD = "report.html", "model_card.md"


def report(argv: list[str]) -> None:
    """Write the page, and the card where it is asked for.

    Raises:
        ErasureError: If something is no run or cannot be read, or something that is not ours would
            be overwritten.
    """
    options = _parser().parse_args(argv)
    from erasure_lightning.report.card import render_card
    from erasure_lightning.report.page import render_page
    from erasure_lightning.report.run_record import read_run_record

    place = _place(options.out, options.runs)
    if options.card:
        _check_card(place.with_name(CARD), options.runs)
    runs = [read_run_record(run) for run in options.runs]
    for facts in runs:
        for note in facts.notes:
            print(f"{facts.name}: {note}")
    _write(place, render_page(runs))
    if options.card:
        _write(place.with_name(CARD), render_card(runs[0]))
        print(
            "The card names no licence: before you publish it, add one that the base model's"
            " allows."
        )


def _parser() -> Arguments:
    parser = Arguments(
        "erasure report",
        description=(
            "Write one HTML page that holds everything known of a run, or of several side by side:"
            " verdict, pictures, figures with intervals, attacks, curves, cost, config and how to"
            " do it again."
        ),
    )
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="a run's folder, or one of `erasure test`"
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help=f"the page; RUN/{PAGE} by default, needed for several runs. A page "
        "that this command wrote is replaced, nothing else is",
    )  # fmt: skip
    parser.add_argument(
        "--card", action="store_true", help=f"write a model card for the Hugging Face Hub too, as {CARD} beside the "
        "page; never over one that is there, since it is yours to go on writing",
    )  # fmt: skip
    return parser


def _place(out: Path | None, runs: list[Path]) -> Path:
    """Where the page goes."""
    if out is None and len(runs) > 1:
        raise ErasureError(
            f"erasure report of {len(runs)} runs needs a place for its page: give --out {PAGE}."
        )
    place = out or run_of(runs[0]).root / PAGE
    if place.is_dir():
        raise ErasureError(
            f"erasure report needs a file to write; found the folder {place}. Give --out"
            f" {place / PAGE}."
        )
    if place.exists() and not _ours(place):
        raise ErasureError(
            f"{place} was not written by `erasure report`, and is not overwritten. Choose another"
            " --out."
        )
    return place


def _ours(path: Path) -> bool:
    """Whether a file is a page that this command wrote: it says so near its beginning."""
    from erasure_lightning.report.page import GENERATOR

    return f'<meta name="generator" content="{GENERATOR} '.encode() in path.read_bytes()[:2000]


def _check_card(place: Path, runs: list[Path]) -> None:
    if len(runs) > 1:
        raise ErasureError(
            f"A model card is about one edit; found {len(runs)} runs. Give one, or leave out"
            " --card."
        )
    if place.exists():
        raise ErasureError(
            f"{place} is there already, and is not overwritten: it may have been edited. Move it"
            " first."
        )


def _write(path: Path, text: str) -> None:
    content = text.encode(
        errors="replace"
    )  # a lone surrogate out of some JSON file is no character
    write_atomically(path, content)
    print(f"Written: {path} ({len(content) / 1000:,.0f} kB).")
