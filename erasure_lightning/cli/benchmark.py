"""``erasure benchmark``: a suite, from its YAML to its table and summary."""

import argparse
import contextlib
import difflib
import io
import os
import signal
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from erasure_lightning.benchmark.jobs import Job, Status, has_edits, initial_files, list_jobs
from erasure_lightning.benchmark.suite import Suite
from erasure_lightning.benchmark.suite_reader import SuiteReader
from erasure_lightning.cli.arguments import Arguments, count
from erasure_lightning.cli.configs import SHIPPED, checked_config, load_yaml
from erasure_lightning.cli.short_names import find_concepts
from erasure_lightning.concepts.concept import shortened_names
from erasure_lightning.concepts.files import read_concepts
from erasure_lightning.errors import ErasureError
from erasure_lightning.files.writing import write_atomically
from erasure_lightning.runs.folder import RUNS_FOLDER, slug

SUITE_FILE = "suite.yaml"

#: Picture seeds of ``erasure fit``, where a suite does not say how many.
SEEDS = 3


def benchmark(argv: list[str]) -> None:
    """Do what is asked for with a suite.

    Raises:
        ErasureError: If the suite is wrong, its folder holds another one, or cells failed.
        KeyboardInterrupt: If a signal came; children have left by then.
    """
    options = _parser().parse_args(argv)
    suite = _reader().read(_find(options.suite))
    out = options.out or RUNS_FOLDER / slug(suite.name)
    every = list_jobs(suite, out)
    if options.list:
        for number, cell in enumerate(every):
            print(f"{number}\t{cell}\t{cell.status}")
    elif options.check:
        _check(suite)
    elif options.summary:
        _check_folder(suite, out)
        if not (out / SUITE_FILE).exists():
            raise ErasureError(f"--summary needs a benchmark that was begun; found none in {out}.")
        _summarize(suite, out, every)
    elif options.cell is not None:
        _run(suite, out, [_chosen(every, options.cell)], options)
    else:
        _run(suite, out, every, options)
        _summarize(suite, out, every)


def _parser() -> Arguments:
    parser = Arguments(
        "erasure benchmark",
        description=(
            "Erase each concept of a suite by each of its methods, attack each edit, and bring what"
            " was measured together. Run again, it goes on where it was stopped; failed cells are"
            " tried again."
        ),
    )
    parser.add_argument(
        "suite", metavar="SUITE", help="a YAML file, or the name of a shipped one (emoji-bench)"
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="the benchmark's folder; runs/NAME by default"
    )
    parser.add_argument(
        "--jobs", type=count, default=1, metavar="N", help="cells side by side; 1 by default"
    )
    parser.add_argument(
        "--threads",
        type=count,
        metavar="N",
        help="of each; OMP_NUM_THREADS, or the cores shared out",
    )
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument(
        "--list", action="store_true", help="print the cells' numbers and how far each is"
    )
    chosen.add_argument(
        "--cell", type=int, metavar="I", help="run this cell alone, as an array of SLURM does"
    )
    chosen.add_argument(
        "--summary", action="store_true", help="run nothing; bring together what there is"
    )
    chosen.add_argument(
        "--check", action="store_true", help="run nothing; is each concept drawn before any edit?"
    )
    return parser


def _reader() -> SuiteReader:
    return SuiteReader(_config, lambda name: read_concepts(find_concepts(name)))


def _config(name: str) -> dict[str, Any]:
    return dict(load_yaml(checked_config(name).read_text(encoding="utf-8")))


def _find(name: str) -> Path:
    """A suite by path, else a shipped one by name."""
    path, shipped = Path(name), {p.stem: p for p in (SHIPPED / "suites").glob("*.yaml")}
    if path.is_file():
        return path
    if found := shipped.get(name.removesuffix(".yaml")):
        return found
    near = difflib.get_close_matches(path.stem, shipped, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ErasureError(
        f"unknown suite {name!r}: no such file.{hint} Shipped:"
        f" {', '.join(sorted(shipped)) or 'none'}."
    )


def _chosen(every: Sequence[Job], number: int) -> Job:
    if not 0 <= number < len(every):
        raise ErasureError(
            f"--cell needs a number from 0 to {len(every) - 1} (see --list); found {number}."
        )
    return every[number]


def _check_folder(suite: Suite, out: Path) -> None:
    """Raise if the folder is not this benchmark's."""
    if (held := out / SUITE_FILE).exists():
        if (difference := _reader().read(held).difference(suite)) and has_edits(out):
            raise ErasureError(
                f"{out} holds another benchmark's cells. They differ in {difference} (there and"
                " here). Choose another --out, or undo the change."
            )
    elif out.exists() and any(out.iterdir()):
        raise ErasureError(
            f"{out} is not empty and holds no benchmark ({SUITE_FILE}). Choose another --out."
        )


def _run(suite: Suite, out: Path, chosen: Sequence[Job], options: argparse.Namespace) -> None:
    """Run what is missing of cells.

    Raises:
        ErasureError: If a method's config or options are wrong, which would fail every cell of it;
            at the end, if a single cell that was asked for failed.
    """
    from erasure_lightning.benchmark.engine import Engine

    _check_folder(suite, out)
    missing = [cell for cell in chosen if cell.status is not Status.FINISHED]
    if not missing:
        return
    _check_options(suite, missing)
    for path, text in initial_files(suite, out):
        write_atomically(path, text.encode())
    threads = options.threads or _threads(options.jobs)
    print(
        f"{suite.name}: {len(missing)} of {len(chosen)} cells to run, {options.jobs} side by side,"
        f" in {out}"
    )
    with _farewell(options.suite, out):
        for number, done in enumerate(Engine(options.jobs, threads).run(missing), start=1):
            told = f" ({done.message}; see {done.job.log})" if done.message else ""
            print(
                f"[{number}/{len(missing)}] {done.job}: {done.status} after {done.seconds:.0f}"
                f" s{told}",
                flush=True,
            )
    if options.cell is not None and chosen[0].failure.exists():
        raise ErasureError(
            f"{chosen[0]} failed: {chosen[0].failure.read_text(encoding='utf-8').strip()}"
        )


def _threads(jobs: int) -> int:
    """What the user's environment says, else an equal share of the cores."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return int(asked) if asked.isdigit() else max(1, (os.cpu_count() or 1) // jobs)


@contextlib.contextmanager
def _farewell(suite: str, out: Path) -> Iterator[None]:
    """Stop for SIGTERM as for Ctrl-C, and say how to go on."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except KeyboardInterrupt:
        print(
            f"Stopped; finished cells are kept in {out}, and the others save what they can. Go on"
            f" with the same command: erasure benchmark {suite} --out {out}",
            flush=True,
        )
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def _check_options(suite: Suite, missing: Sequence[Job]) -> None:
    """Raise if no attack has a name, or if `erasure fit` would refuse a method's arguments, and so
    every cell of it.

    Raises:
        ErasureError: With the attack, or the method.
    """
    from erasure_lightning.cli.run import run
    from erasure_lightning.registry import find_attack

    for attack in suite.attacks:
        if attack.attack.isidentifier():
            find_attack(attack.attack)
    with (
        tempfile.TemporaryDirectory() as scratch
    ):  # a folder of a suite that cannot run would be in the way
        for path, text in initial_files(suite, Path(scratch)):
            write_atomically(path, text.encode())
        for cell in list_jobs(suite, Path(scratch))[:: len(suite.concepts)][: len(suite.methods)]:
            if not any(other.method == cell.method for other in missing):
                continue
            try:
                with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
                    run("fit", [*(cell.next_command() or ())[1:], "--print_config"])
            except ErasureError as error:
                raise ErasureError(f"The method {cell.method.name} cannot run: {error}") from error


def _check(suite: Suite) -> None:
    """Print whether each concept is drawn before any edit.

    Raises:
        ErasureError: If one is not.
    """
    import torch

    from erasure_lightning.api.quiet import silence
    from erasure_lightning.backbones.loading import load_backbone
    from erasure_lightning.benchmark.baseline_check import (
        DOMAIN_THRESHOLD,
        STYLE_THRESHOLD,
        THING_THRESHOLD,
        BaselineChecker,
    )

    silence()
    seeds = suite.options.get("data.seeds", SEEDS)
    if not isinstance(seeds, int):
        raise ErasureError(
            f"{suite.name}: options.data.seeds needs a whole number; found {seeds!r}."
        )
    device = torch.accelerator.current_accelerator() or "cpu"
    checker = BaselineChecker(load_backbone(suite.backbone).to(device), seeds)
    odd: list[str] = []
    print(
        f"Recognised by {suite.backbone} before any edit, {seeds} seeds; needed:"
        f" {THING_THRESHOLD:g} of own prompts ({STYLE_THRESHOLD:g}\n"
        f"of a style's) and of neighbours, {DOMAIN_THRESHOLD:g} of the domain's.\n"
    )
    print(f"{'concept':24}{'kind':8}{'own':>6}{'domain':>8}{'neighbours':>12}  holds")
    for entry in suite.concepts:
        found = checker.check(entry)
        own, domain, near = (
            "-" if s is None else f"{s:.2f}" for s in (found.own, found.domain, found.neighbours)
        )
        holds = "yes" if found.holds else "NO"
        print(f"{entry.name:24}{entry.group:8}{own:>6}{domain:>8}{near:>12}  {holds}", flush=True)
        odd += [] if found.holds else [entry.name]
    if odd:
        raise ErasureError(
            f"{suite.backbone} does not draw well enough what is to be erased or kept:"
            f" {shortened_names(odd)}."
        )


def _summarize(suite: Suite, out: Path, every: Sequence[Job]) -> None:
    """Write table, pages and plot, and print the page.

    Raises:
        ErasureError: If cells failed, or none has finished.
    """
    from erasure_lightning.benchmark.pareto import plot_pareto
    from erasure_lightning.benchmark.summary import summarize
    from erasure_lightning.benchmark.summary_tables import latex, markdown, summary_tables
    from erasure_lightning.benchmark.table import check_protocols, save_table, table_rows

    table, protocols = table_rows(every)
    save_table(out, table, protocols)
    check_protocols(table, protocols)
    failed = [row for row in table if row["status"] == Status.FAILED]
    if any(row["status"] == Status.FINISHED for row in table):
        summary = summarize(table)
        text, plotted = (
            markdown(summary_tables(summary, table)),
            any(s.erasure and s.retention for s in summary.methods),
        )
        plot = "![Pareto plot](pareto.png)\n\n" if plotted else ""
        write_atomically(out / "summary.md", f"# {suite.name}\n\n{plot}{text}".encode())
        write_atomically(out / "summary.tex", latex(summary_tables(summary, table)).encode())
        if plotted:
            write_atomically(out / "pareto.png", plot_pareto(summary, suite.name))
        print(f"\n{text}\nTable and summary (Markdown, LaTeX, plot) are in {out}.")
    else:
        print(f"No cell has finished yet; the table is in {out}.")
    if failed:
        first = (
            f"{failed[0]['method']} {failed[0]['concept']} seed {failed[0]['seed']}:"
            f" {failed[0]['message']}"
        )
        raise ErasureError(
            f"{len(failed)} of {len(table)} cells failed; run again to retry them. The first,"
            f" {first}"
        )
