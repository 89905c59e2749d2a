"""``erasure methods`` and ``erasure compare``."""

from collections import Counter
from pathlib import Path

from erasure_lightning.cli.arguments import Arguments
from erasure_lightning.cli.loading import load
from erasure_lightning.errors import ErasureError
from erasure_lightning.methods import METHODS
from erasure_lightning.registry import Method, known_methods
from erasure_lightning.worlds import GROUP as WORLDS


def methods(argv: list[str]) -> None:
    """Print every method and world."""
    parser = Arguments("erasure methods", description="List every method and world, built in or plugged in.")
    parser.add_argument("--verbose", action="store_true", help="load each, and say why where that fails")
    verbose = parser.parse_args(argv).verbose
    known = known_methods()
    claims = Counter(method.name for method in known)
    for method in known:
        print(_entry(method, claims[method.name] > 1))
        if verbose:
            print(f"    {_state(method)}")
    _worlds()


def _entry(method: Method, claimed_twice: bool) -> str:
    ours = method.target == (METHODS[method.name].target if method.name in METHODS else "")
    note = "  (another package claims this name too)" if claimed_twice and not ours else ""
    lines = [f"{method.name}  {method.summary}".rstrip() + note, f"    {method.package}, {method.class_path}"]
    return "\n".join([*lines, f"    {method.paper}"] if method.paper else lines)


def _state(method: Method) -> str:
    try:
        load(method)
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
    parser = Arguments("erasure compare", description="Put the figures of equally measured runs side by side.")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run's folder, or its metrics.json")
    given = [Path(name) for name in parser.parse_args(argv).runs]
    from rich.console import Console
    from rich.table import Table

    from erasure_lightning.metrics import protocol

    results = {str(p): protocol.Result.load(p / "metrics.json" if p.is_dir() else p) for p in given}
    rows = protocol.compare(results)
    table = Table("", "before", *results, caption=f"protocol {next(iter(results.values())).protocol.identity}")
    for row in rows:
        after = [str(row.after[name]) for name in results]
        table.add_row(f"{row.group} {row.metric}", str(row.before) if row.before else "", *after)
    Console().print(table)
