"""``erasure report``: runs as a self-contained HTML page, and as a model card."""

from pathlib import Path

from erasure_lightning.cli.arguments import Arguments


def run_report(argv: list[str]) -> None:
    """Write the page and, with ``--card``, the model card.

    Raises:
        ErasureError: If a run cannot be read, or a file would be overwritten.
    """
    options = _parser().parse(argv)
    from erasure_lightning.report.report_files import write_report

    files = write_report(options.runs, options.run_dir, with_card=options.card)
    for note in files.notes:
        print(note)
    for path in files.paths:
        print(f"Written: {path} ({path.stat().st_size / 1000:,.0f} kB).")
    if options.card:
        print(
            "The card names no licence: before you publish it, add one that the base model's"
            " allows."
        )


def _parser() -> Arguments:
    parser = Arguments(
        "report",
        "Write one HTML page with the content of a run, or of several side by side: verdict,"
        " images, figures with intervals, attacks, curves, cost, config and how to reproduce it.",
    )
    parser.add_run("A run's folder, or one of `erasure test`.", several=True)
    parser.add_options(
        Path,
        run_dir="Folder of the page, report.html; by default RUN, required for several runs. A"
        " page that this command wrote is replaced; other files are not.",
    )
    parser.add_flags(
        card="Write a model card for the Hugging Face Hub too, model_card.md beside the page. An"
        " existing card is not overwritten."
    )
    return parser
