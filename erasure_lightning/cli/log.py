"""``erasure log``: finished runs and outcomes of attacks, on W&B or TensorBoard."""

from pathlib import Path

from erasure_lightning.api.log import log_entry, logged_entries
from erasure_lightning.api.quiet import silence
from erasure_lightning.cli.arguments import Arguments
from erasure_lightning.runs.logger_session import check_account


def run_log(argv: list[str]) -> None:
    """Log runs and attacks.

    Raises:
        ErasureError: If one is missing, or the dashboard cannot be written to.
    """
    options = _parser().parse(argv)
    entries = [entry for path in options.paths for entry in logged_entries(path)]
    if options.logger == "wandb":
        check_account(options.offline, "--offline")
    silence()
    for entry in entries:
        log_entry(entry, options.logger, project=options.project, offline=options.offline)
        print(f"Logged {entry.folder} as {entry.name}.")


def _parser() -> Arguments:
    parser = Arguments(
        "log", "Log finished runs, and the outcomes of attacks, on Weights & Biases or TensorBoard."
    )
    parser.add_argument(
        "paths",
        nargs="+",
        type=Path,
        metavar="PATH",
        help="A run's folder, for it and its attacks; or an attack's.",
    )
    parser.add_argument(
        "--logger", required=True, choices=("wandb", "tensorboard"), help="The logger, as for fit."
    )
    parser.add_flags(offline="Write W&B's run into the folder only, for `wandb sync` later.")
    parser.add_options(str, project="W&B's project; by default `erasure`, as for fit.")
    return parser
