"""``erasure methods``, ``erasure attacks`` and ``erasure compare``."""

import json
from argparse import Namespace
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

from erasure_lightning.cli.arguments import Arguments
from erasure_lightning.cli.slow_import import load_with_notice
from erasure_lightning.concepts.worlds import WORLDS_GROUP as WORLDS
from erasure_lightning.concepts.worlds import find_world
from erasure_lightning.discovery import package_of
from erasure_lightning.errors import ErasureError
from erasure_lightning.files.writing import SCORE_FILE
from erasure_lightning.registry import ATTACK, METHOD, ExtensionKind, Offer, known_offers
from erasure_lightning.runs.folder import Run


def run_methods(argv: list[str]) -> None:
    """Print every method and world."""
    options = _print_offers(
        "methods", "List every method and world, built in or of plugins.", METHOD, argv
    )
    if not options.families:
        _print_worlds(options.verbose)


def run_attacks(argv: list[str]) -> None:
    """Print every attack."""
    _print_offers("attacks", "List every attack, built in or of plugins.", ATTACK, argv)


def _print_offers(
    command: str, description: str, kind: ExtensionKind, argv: list[str]
) -> Namespace:
    parser = Arguments(command, description)
    parser.add_flags(
        families="Print which of them runs on which model family.",
        verbose="Load each, and print the error of those that fail.",
    )
    options = parser.parse(argv)
    known = known_offers(kind)
    if options.families:
        from erasure_lightning.cli.compatibility_table import compatibility_table

        print(compatibility_table(known))
        return options
    counts = Counter(offer.name for offer in known)
    for offer in known:
        print(_entry(offer, counts[offer.name] > 1))
        if options.verbose:
            print(f"    {_state(partial(load_with_notice, offer))}")
    return options


def _entry(offer: Offer, ambiguous: bool) -> str:
    table = offer.kind.ours
    ours = offer.target == (table[offer.name].target if offer.name in table else "")
    note = "  (another package claims this name too)" if ambiguous and not ours else ""
    lines = [
        f"{offer.name}  {offer.summary}".rstrip() + note,
        f"    {offer.package}, {offer.class_path}",
    ]
    return "\n".join([*lines, f"    {offer.paper}"] if offer.paper else lines)


def _state(load: Callable[[], object]) -> str:
    try:
        load()
    except ErasureError as error:
        return f"BROKEN: {error}"
    return "loads"


def _print_worlds(verbose: bool) -> None:
    from importlib.metadata import entry_points

    for entry in sorted(entry_points(group=WORLDS)):
        package = package_of(entry)
        print(f"{entry.name}  a small trained world (--model.backbone {entry.name})\n    {package}")
        if verbose:
            print(f"    {_state(partial(find_world, entry.name))}")


def run_compare(argv: list[str]) -> None:
    """Print the figures of runs, or the scores of images, side by side."""
    parser = Arguments("compare", "Print the figures of runs of one protocol side by side.")
    parser.add_run(
        "A run's folder, or its metrics.json; a folder of `erasure score`, or its score.json.",
        several=True,
    )
    paths: list[Path] = parser.parse(argv).runs
    if score := _score_file(paths[0]):
        _compare_scores({str(paths[0]): score} | {str(p): _score_file(p) or p for p in paths[1:]})
        return
    from rich.console import Console
    from rich.table import Table

    from erasure_lightning.metrics import protocol

    results = {str(p): protocol.Result.load(Run(p).figures if p.is_dir() else p) for p in paths}
    rows = protocol.compare_results(results)
    identity = next(iter(results.values())).protocol.identity
    table = Table("", "before", *results, caption=f"protocol {identity}")
    for row in rows:
        after = [row.after[name].two_lines() for name in results]
        before = row.before.two_lines() if row.before else ""
        table.add_row(f"{row.group} {row.metric}", before, *after)
    Console(markup=False).print(table)


def _score_file(path: Path) -> Path | None:
    """The file of `erasure score`, whatever its name, or the one in a folder without figures."""
    if path.is_dir():
        score = path / SCORE_FILE
        return score if score.is_file() and not Run(path).figures.exists() else None
    with suppress(OSError, ValueError, TypeError):
        keys = set(json.loads(path.read_text(encoding="utf-8")))
        return path if keys == {"estimates", "protocol", "versions"} else None
    return None


def _compare_scores(files: dict[str, Path]) -> None:
    from rich.console import Console

    from erasure_lightning.metrics.score import Score, check_comparable, score_table

    scores = {name: Score.load(file) for name, file in files.items()}
    check_comparable(scores)
    Console(markup=False).print(score_table(scores))
