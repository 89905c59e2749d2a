"""``erasure methods``, ``erasure attacks`` and ``erasure compare``."""

import json
from collections import Counter
from contextlib import suppress
from pathlib import Path

from erasure_lightning.cli.arguments import Arguments
from erasure_lightning.cli.slow_import import load
from erasure_lightning.concepts.worlds import WORLDS_GROUP as WORLDS
from erasure_lightning.errors import ErasureError
from erasure_lightning.registry import Offer, known_attacks, known_methods
from erasure_lightning.runs.folder import Run


def methods(argv: list[str]) -> None:
    """Print every method and world."""
    _listed(
        "methods", "List every method and world, built in or plugged in.", known_methods(), argv
    )
    _worlds()


def attacks(argv: list[str]) -> None:
    """Print every attack."""
    _listed("attacks", "List every attack, built in or plugged in.", known_attacks(), argv)


def _listed(command: str, description: str, known: list[Offer], argv: list[str]) -> None:
    parser = Arguments(f"erasure {command}", description=description)
    parser.add_argument(
        "--verbose", action="store_true", help="load each, and say why where that fails"
    )
    verbose = parser.parse_args(argv).verbose
    claims = Counter(offer.name for offer in known)
    for offer in known:
        print(_entry(offer, claims[offer.name] > 1))
        if verbose:
            print(f"    {_state(offer)}")


def _entry(offer: Offer, claimed_twice: bool) -> str:
    table = offer.kind.ours
    ours = offer.target == (table[offer.name].target if offer.name in table else "")
    note = "  (another package claims this name too)" if claimed_twice and not ours else ""
    lines = [
        f"{offer.name}  {offer.summary}".rstrip() + note,
        f"    {offer.package}, {offer.class_path}",
    ]
    return "\n".join([*lines, f"    {offer.paper}"] if offer.paper else lines)


def _state(offer: Offer) -> str:
    try:
        load(offer)
    except ErasureError as error:
        return f"BROKEN: {error}"
    return "loads"


def _worlds() -> None:
    from importlib.metadata import entry_points

    for entry in sorted(entry_points(group=WORLDS)):
        package = f"{entry.dist.name} {entry.dist.version}" if entry.dist else entry.module
        print(f"{entry.name}  a small trained world (--model.backbone {entry.name})\n    {package}")


def compare(argv: list[str]) -> None:
    """Print the figures of runs side by side."""
    parser = Arguments(
        "erasure compare", description="Put the figures of equally measured runs side by side."
    )
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="a run's folder, or its metrics.json; or a score.json",
    )
    given = [Path(name) for name in parser.parse_args(argv).runs]
    if _is_score(given[0]):
        _compare_scores(given)
        return
    from rich.console import Console
    from rich.table import Table

    from erasure_lightning.metrics import protocol

    results = {str(p): protocol.Result.load(Run(p).figures if p.is_dir() else p) for p in given}
    rows = protocol.compare_results(results)
    table = Table(
        "", "before", *results, caption=f"protocol {next(iter(results.values())).protocol.identity}"
    )
    for row in rows:
        after = [str(row.after[name]) for name in results]
        table.add_row(f"{row.group} {row.metric}", str(row.before) if row.before else "", *after)
    Console().print(table)


def _is_score(path: Path) -> bool:
    """Whether a file is what `erasure score` writes, whatever it is called."""
    with suppress(OSError, ValueError, TypeError):
        return set(json.loads(path.read_text(encoding="utf-8"))) == {
            "estimates",
            "protocol",
            "versions",
        }
    return False


def _compare_scores(given: list[Path]) -> None:
    from rich.console import Console

    from erasure_lightning.metrics.score import Score, check_comparable, score_table

    scores = {str(path): Score.load(path) for path in given}
    check_comparable(scores)
    Console().print(score_table(scores))
