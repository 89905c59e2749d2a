"""``erasure benchmark``: a suite of methods, concepts and attacks."""

import argparse
import contextlib
import os
import signal
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from erasure_lightning.api.configs import SHIPPED, config_content
from erasure_lightning.benchmark.jobs import (
    SUITE_FILE,
    Job,
    Status,
    has_edits,
    initial_files,
    list_jobs,
)
from erasure_lightning.benchmark.suite import Suite
from erasure_lightning.benchmark.suite_reader import SuiteReader
from erasure_lightning.checks import require
from erasure_lightning.cli.arguments import Arguments, suggestion
from erasure_lightning.cli.benchmark_check import check_suite
from erasure_lightning.cli.concept_options import find_concepts
from erasure_lightning.concepts.files import read_concepts
from erasure_lightning.concepts.worlds import installed_world
from erasure_lightning.errors import ErasureError
from erasure_lightning.files.words import shell_word
from erasure_lightning.files.writing import write_atomically
from erasure_lightning.runs.folder import RUNS_FOLDER, slug

#: Flags that run no cell.
_MODES = {
    "list": "Print the number and the status of each cell.",
    "summary": "Summarize the cells that have finished.",
    "check": "Measure whether each concept is generated before any edit.",
}


def run_benchmark(argv: list[str]) -> None:
    """Run, list, check or summarize a suite.

    Raises:
        ErasureError: If the suite is wrong, its folder holds another one, or cells failed.
        KeyboardInterrupt: For a signal, once all children have ended.
    """
    options = _parser().parse(argv)
    numbers = {"--jobs": options.jobs, "--threads": options.threads}
    require("erasure benchmark", at_least=1, **numbers)
    suite = _reader().read(_find(options.suite))
    out = options.run_dir or RUNS_FOLDER / slug(suite.name)
    every = list_jobs(suite, out)
    if options.list:
        if (out / SUITE_FILE).exists():
            _check_folder(suite, out)
        for number, cell in enumerate(every):
            print(f"{number}\t{cell}\t{cell.status}")
    elif options.check:
        check_suite(suite)
    elif options.summary:
        _check_folder(suite, out)
        if not (out / SUITE_FILE).exists():
            raise ErasureError(f"--summary needs a benchmark that was begun; found none in {out}.")
        _summarize(suite, out, every, {})
    elif options.cell is not None:
        _run(suite, out, [_chosen(every, options.cell)], options)
    else:
        failures = _run(suite, out, every, options)
        _summarize(suite, out, every, failures)


def _parser() -> Arguments:
    parser = Arguments(
        "benchmark",
        "Erase each concept of a suite by each of its methods, attack each edit, and summarize the"
        " figures. A second call resumes; failed cells are tried again.",
    )
    parser.add_argument(
        "suite", metavar="SUITE", help="A YAML file, or the name of a shipped one (emoji-bench)."
    )
    parser.add_options(Path, run_dir="The benchmark's folder; by default runs/NAME.")
    parser.add_options(
        int,
        jobs="Number of cells that run at the same time.",
        threads="Threads of each; by default OMP_NUM_THREADS, else an equal share of the cores.",
    )
    parser.set_defaults(jobs=1)
    modes = parser.add_mutually_exclusive_group()
    modes.add_argument("--cell", type=int, help="Run one cell, by number, as in a SLURM array.")
    for name, text in _MODES.items():
        modes.add_argument(f"--{name}", action="store_true", help=text)
    return parser


def _reader() -> SuiteReader:
    return SuiteReader(config_content, lambda name: read_concepts(find_concepts(name)))


def _find(name: str) -> Path:
    """A suite by path, else a shipped one by name."""
    path = Path(name)
    shipped = {p.stem: p for p in (SHIPPED / "suites").glob("*.yaml")}
    if path.is_file():
        return path
    if suite := shipped.get(name.removesuffix(".yaml")):
        return suite
    raise ErasureError(
        f"unknown suite {name!r}: no such file{suggestion(path.stem, shipped) or '.'} Shipped:"
        f" {', '.join(sorted(shipped)) or 'none'}."
    )


def _chosen(every: Sequence[Job], number: int) -> Job:
    if not 0 <= number < len(every):
        raise ErasureError(
            f"--cell needs a number from 0 to {len(every) - 1} (see --list); found {number}."
        )
    return every[number]


def _check_folder(suite: Suite, out: Path) -> Suite:
    """The suite with the entries of the folder's cells; raises if it is not this benchmark's."""
    is_begun = (out / SUITE_FILE).exists()
    if is_begun and has_edits(out):
        held = _reader().read(out / SUITE_FILE)
        if difference := held.difference(suite):
            raise ErasureError(
                f"{out} holds another benchmark's cells. They differ in {difference} (there and"
                " here). Choose another --run_dir, or undo the change."
            )
        return suite.with_entries_of(held)
    if not is_begun and out.exists() and any(out.iterdir()):
        raise ErasureError(
            f"{out} is not empty and holds no benchmark ({SUITE_FILE}). Choose another --run_dir."
        )
    return suite


def _run(
    suite: Suite, out: Path, chosen: Sequence[Job], options: argparse.Namespace
) -> dict[str, str]:
    """Run the missing commands of cells; returns why cells failed, by their texts.

    Raises:
        ErasureError: If a method's config or options are wrong, which would fail every cell of it;
            at the end, if the one cell of ``--cell`` failed.
    """
    from erasure_lightning.benchmark.engine import Engine

    whole = _check_folder(suite, out)
    missing = [cell for cell in chosen if cell.status is not Status.FINISHED]
    if not missing:
        return {}
    _check_options(suite, missing)
    for path, text in initial_files(whole, out):
        write_atomically(path, text.encode())
    engine = Engine(options.jobs, options.threads or _threads(options.jobs))
    print(
        f"{suite.name}: {len(missing)} of {len(chosen)} cells to run, {options.jobs} at a time,"
        f" in {out}"
    )
    failures: dict[str, str] = {}
    # Closed first, so that children have ended where an interruption is printed.
    with _interruptible(options.suite, out), contextlib.closing(engine.run(missing)) as results:
        for number, done in enumerate(results, start=1):
            if done.message:
                failures[str(done.job)] = done.message
            see = f"; see {done.job.log}" if os.path.exists(done.job.log) else ""
            cause = f" ({done.message}{see})" if done.message else ""
            print(
                f"[{number}/{len(missing)}] {done.job}: {done.status} after {done.seconds:.0f}"
                f" s{cause}",
                flush=True,
            )
    if options.cell is not None and failures:
        raise ErasureError(f"{chosen[0]} failed: {failures[str(chosen[0])]}")
    return failures


def _threads(jobs: int) -> int:
    """``OMP_NUM_THREADS``, else an equal share of the cores."""
    threads = os.environ.get("OMP_NUM_THREADS", "")
    return int(threads) if threads.isdigit() else max(1, (os.cpu_count() or 1) // jobs)


@contextlib.contextmanager
def _interruptible(suite: str, out: Path) -> Iterator[None]:
    """Stop for SIGTERM as for Ctrl-C, and print the command that resumes."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        print(
            f"Stopped; finished cells are in {out}, and the others save what they can. Resume"
            f" with the same command: erasure benchmark {shell_word(suite)} --run_dir"
            f" {shell_word(out)}",
            flush=True,
        )
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def _check_options(suite: Suite, missing: Sequence[Job]) -> None:
    """Raise for a concept, a method or an attack that `erasure fit` or `attack` would refuse.

    Raises:
        ErasureError: With the concept, the method, or the attack.
    """
    from erasure_lightning.attacks.target import require_scorer
    from erasure_lightning.cli.attack import parsed_attack
    from erasure_lightning.cli.fit import check_fit
    from erasure_lightning.training.backbone_checks import check_world

    world = installed_world(suite.backbone)
    if world is not None:
        check_world(world, [concept for entry in suite.concepts for concept in entry.erase])
    # A suite that cannot run must leave no folder.
    with tempfile.TemporaryDirectory() as scratch:
        for path, text in initial_files(suite, Path(scratch)):
            write_atomically(path, text.encode())
        first, *_ = jobs = list_jobs(suite, Path(scratch))
        for cell in jobs[:: len(suite.concepts)][: len(suite.methods)]:
            if any(other.method == cell.method for other in missing):
                with _named(f"The method {cell.method.name}"):
                    check_fit((cell.next_command() or [])[1:])
        for attack in suite.attacks:
            with _named(f"The attack {attack.name}"):
                settings = parsed_attack(first.attack_command(attack)[1:])
                require_scorer(settings, world, suite.backbone)


@contextlib.contextmanager
def _named(subject: str) -> Iterator[None]:
    """Raise an error with who cannot run."""
    try:
        yield
    except ErasureError as error:
        raise ErasureError(f"{subject} cannot run: {error}") from error


def _summarize(suite: Suite, out: Path, every: Sequence[Job], failures: Mapping[str, str]) -> None:
    """Write table, pages and plot, and print the page.

    Raises:
        ErasureError: If cells failed, or were measured differently.
    """
    from erasure_lightning.benchmark.summary_files import require_no_failure, write_summary
    from erasure_lightning.benchmark.table import table_rows

    table, protocols = table_rows(every, failures)
    if text := write_summary(suite.name, out, table, protocols):
        print(f"\n{text}\nTable and summary are in {out}.")
    else:
        print(f"No cell has finished yet; the table is in {out}.")
    require_no_failure(table)
