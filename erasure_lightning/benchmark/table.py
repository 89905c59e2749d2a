"""Table of a benchmark: for each cell its figures with intervals, its cost and its protocols."""

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from erasure_lightning.attacks.outcome import Outcome
from erasure_lightning.benchmark.jobs import Job, Status
from erasure_lightning.errors import ErasureError
from erasure_lightning.files.writing import write_atomically, write_json
from erasure_lightning.metrics.estimates import Estimate
from erasure_lightning.metrics.protocol import Protocol, Result

#: Figures of a cell: the group and the metric of its `Result` that each is read from.
_FIGURES = {
    "efficacy": ("efficacy", "recognized"),
    "generality": ("generality", "recognized"),
    "neighbours": ("neighbours", "recognized"),
    "specificity": ("specificity", "recognized"),
    "similarity": ("structure", "similarity"),
    "distance": ("structure", "distance"),
}

#: Fields of a fit's ``cost.json``.
_COST_FIELDS = ("seconds", "steps", "trained_parameters", "evaluations", "backwards", "peak_gib")

#: End of the names of columns that identify how a figure was measured.
PROTOCOL_SUFFIX = "protocol"

#: Values of one cell by column; None where a value is not known.
CellRow = dict[str, Any]


class _Measured(NamedTuple):
    """What the files of a cell hold.

    Args:
        result: Its figures; None before they are measured.
        outcomes: Outcomes of the attacks that were made, by the attack's name.
        cost: The fields of its cost; empty if it was not recorded.
    """

    result: Result | None
    outcomes: Mapping[str, Outcome]
    cost: CellRow


def table_rows(
    jobs: Sequence[Job], failures: Mapping[str, str]
) -> tuple[list[CellRow], dict[str, Protocol]]:
    """The row of every job, and the protocols by their identity.

    A job with a file that cannot be read has failed, with the error as its message.

    Args:
        jobs: The jobs.
        failures: Why jobs have failed whose folders may not hold it, by the job's text.
    """
    protocols: dict[str, Protocol] = {}
    return [_table_row(job, protocols, failures.get(str(job))) for job in jobs], protocols


def _table_row(job: Job, protocols: dict[str, Protocol], failure: str | None) -> CellRow:
    status, message, (result, outcomes, cost) = _read_status(job, failure)
    row: CellRow = {
        "method": job.method.name,
        "concept": job.concept.name,
        "group": job.concept.group,
        "seed": job.seed,
        "status": status.value,
        "message": message,
        PROTOCOL_SUFFIX: _record_protocol(result, protocols),
    }
    for figure, (group, metric) in _FIGURES.items():
        estimates = result.estimates.get(group, {}).get(metric, {}) if result else {}
        row |= _figure_columns(figure, estimates.get("after"))
        if figure not in ("similarity", "distance"):
            before = estimates.get("before")
            row[f"{figure}_before"] = before.mean if before else None
    row["harmonic"] = result.overall("after") if result else None
    for attack in job.suite.attacks:
        name = f"attack_{attack.name}"
        outcome = outcomes.get(attack.name)
        row |= _figure_columns(name, outcome.success["attacked"] if outcome else None)
        row[f"{name}_{PROTOCOL_SUFFIX}"] = _record_protocol(outcome, protocols)
    return row | {name: cost.get(name) for name in _COST_FIELDS}


def _read_status(job: Job, failure: str | None) -> tuple[Status, str, _Measured]:
    """Status of a cell, why it failed, and its results; it has failed where they are unreadable."""
    status = job.status
    message = ""
    measured = _Measured(None, {}, {})
    try:
        if status is Status.FAILED:
            message = job.failure.read_text(encoding="utf-8").strip()
        measured = _read(job)
    except ErasureError as error:
        status = Status.FAILED
        message = f"{error} Delete this file before you run it again."
    except OSError as error:
        status = Status.FAILED
        message = str(error)
    return (Status.FAILED, failure, measured) if failure else (status, message, measured)


def _read(job: Job) -> _Measured:
    """Read the files of a cell.

    Raises:
        ErasureError: If one that exists cannot be read.
    """
    run = job.run
    outcomes = {attack.name: job.outcome(attack) for attack in job.suite.attacks}
    return _Measured(
        Result.load(run.metrics) if run.metrics.exists() else None,
        {name: Outcome.load(path) for name, path in outcomes.items() if path.exists()},
        _read_cost(run.cost) if run.cost.exists() else {},
    )


def _figure_columns(name: str, estimate: Estimate | None) -> CellRow:
    """A mean and the ends of its interval over seeds of images."""
    if estimate is None or math.isnan(estimate.mean):
        return {name: None, f"{name}_low": None, f"{name}_high": None}
    return {name: estimate.mean, f"{name}_low": estimate.low, f"{name}_high": estimate.high}


def _record_protocol(measured: Result | Outcome | None, protocols: dict[str, Protocol]) -> str:
    """Add a measurement's protocol; returns its identity, empty without a measurement."""
    if measured is None:
        return ""
    protocols[measured.protocol.identity] = measured.protocol
    return measured.protocol.identity


def _read_cost(path: Path) -> CellRow:
    try:
        cost = json.loads(path.read_text(encoding="utf-8"))
        return {name: cost.get(name) for name in _COST_FIELDS}
    except (ValueError, AttributeError) as error:
        raise ErasureError(
            f"{path} needs the cost of a fit; found something else ({error})."
        ) from error


def check_protocols(table: Sequence[CellRow], protocols: Mapping[str, Protocol]) -> None:
    """Raise if two cells of one concept were measured by different protocols.

    Raises:
        ErasureError: With both cells, and the first field in which their protocols differ.
    """
    first: dict[tuple[str, str], dict[str, CellRow]] = {}  # of each protocol
    for row in table:
        for column in (name for name in row if name.endswith(PROTOCOL_SUFFIX) and row[name]):
            others = first.setdefault((row["concept"], column), {})
            others.setdefault(row[column], row)
            for identity, other in others.items():
                if difference := protocols[identity].difference(protocols[row[column]]):
                    raise ErasureError(
                        f"{cell_name(other)} and {cell_name(row)} were measured differently and"
                        f" cannot be in one summary. They differ in {difference}. Delete one's"
                        " folder and run the benchmark again."
                    )


def cell_name(row: CellRow) -> str:
    """Method, concept and seed of a row."""
    return f"{row['method']} {row['concept']} seed {row['seed']}"


def save_table(folder: Path, table: Sequence[CellRow], protocols: Mapping[str, Protocol]) -> None:
    """Write ``table.csv``, ``protocols.json`` and, with pyarrow installed, ``table.parquet``."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(table[0]))
    writer.writeheader()
    writer.writerows(table)
    write_atomically(folder / "table.csv", text.getvalue().encode())
    content = {identity: asdict(protocol) for identity, protocol in sorted(protocols.items())}
    write_json(folder / "protocols.json", content)
    if (parquet := _to_parquet(table)) is not None:
        write_atomically(folder / "table.parquet", parquet)


def _to_parquet(table: Sequence[CellRow]) -> bytes | None:
    """The table as Parquet; None without pyarrow."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ModuleNotFoundError:
        return None
    texts = {"method", "concept", "group", "status", "message"}
    texts |= {name for name in table[0] if name.endswith(PROTOCOL_SUFFIX)}
    integers = {"seed", "steps", "trained_parameters", "evaluations", "backwards"}
    columns = []
    for name in table[0]:
        if name in texts:
            columns.append((name, pyarrow.string()))
        else:
            columns.append((name, pyarrow.int64() if name in integers else pyarrow.float64()))
    sink = pyarrow.BufferOutputStream()
    content = pyarrow.Table.from_pylist(list(table), schema=pyarrow.schema(columns))
    parquet.write_table(content, sink)
    return bytes(sink.getvalue())
