"""The table of a benchmark: a row a cell, with its figures, their intervals, its cost, and how it
was measured.
"""

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from erasure_lightning.attacks.outcome import Outcome
from erasure_lightning.benchmark.jobs import Job, Status
from erasure_lightning.errors import ErasureError
from erasure_lightning.files.writing import write_atomically, write_json
from erasure_lightning.metrics.estimates import Estimate
from erasure_lightning.metrics.protocol import Protocol, Result

#: Figures of a cell: the group and the metric of its `Result` that they come from.
FIGURES = {
    "efficacy": ("efficacy", "recognized"),
    "generality": ("generality", "recognized"),
    "neighbours": ("neighbours", "recognized"),
    "specificity": ("specificity", "recognized"),
    "similarity": ("structure", "similarity"),
    "distance": ("structure", "distance"),
}

#: What ``cost.json`` holds of a fit.
COSTS = ("seconds", "steps", "trained_parameters", "evaluations", "backwards", "peak_gib")

#: How the names of columns end that tell how a figure was measured.
PROTOCOL = "protocol"

Row = dict[str, Any]


def rows(cells: Sequence[Job]) -> tuple[list[Row], dict[str, Protocol]]:
    """A row for every cell, what is not known being None; and the protocols by their identity.

    Raises:
        ErasureError: If a finished cell's files hold something else than they should.
    """
    protocols: dict[str, Protocol] = {}
    return [_row(cell, protocols) for cell in cells], protocols


def _row(cell: Job, protocols: dict[str, Protocol]) -> Row:
    status = cell.status
    result = Result.load(cell.run.metrics) if cell.run.metrics.exists() else None
    row: Row = {
        "method": cell.method.name, "concept": cell.concept.name, "group": cell.concept.group, "seed": cell.seed,
        "status": status.value, "message": _message(cell) if status is Status.FAILED else "",
        PROTOCOL: _noted(result, protocols),
    }  # fmt: skip
    for figure, (group, metric) in FIGURES.items():
        whens = result.estimates.get(group, {}).get(metric, {}) if result else {}
        row |= _told(figure, whens.get("after"))
        if figure not in ("similarity", "distance"):
            row[f"{figure}_before"] = whens["before"].mean if "before" in whens else None
    row["harmonic"] = result.overall("after") if result else None
    for attack in cell.suite.attacks:
        path = cell.outcome(attack)
        outcome = Outcome.load(path) if path.exists() else None
        row |= _told(f"attack_{attack.name}", outcome.success["attacked"] if outcome else None)
        row[f"attack_{attack.name}_{PROTOCOL}"] = _noted(outcome, protocols)
    return row | _cost(cell.run.cost)


def _told(name: str, estimate: Estimate | None) -> Row:
    """A mean and its interval over picture seeds."""
    found = estimate if estimate and not math.isnan(estimate.mean) else None
    return {
        name: found and found.mean,
        f"{name}_low": found and found.low,
        f"{name}_high": found and found.high,
    }


def _message(cell: Job) -> str:
    return cell.failure.read_text(encoding="utf-8").strip()


def _noted(measured: Result | Outcome | None, protocols: dict[str, Protocol]) -> str:
    """How something was measured, by its identity; empty where it was not."""
    if measured is None:
        return ""
    protocols[measured.protocol.identity] = measured.protocol
    return measured.protocol.identity


def _cost(path: Path) -> Row:
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        return {name: found.get(name) for name in COSTS}
    except (ValueError, AttributeError) as error:
        raise ErasureError(
            f"{path} needs what a fit cost; found something else ({error}). Delete it."
        ) from error


def check_protocols(table: Sequence[Row], protocols: Mapping[str, Protocol]) -> None:
    """Raise if two cells of one concept were measured differently.

    Raises:
        ErasureError: With both cells, and the first field in which their protocols differ.
    """
    first: dict[tuple[str, str], Row] = {}
    for row in table:
        for column in (name for name in row if name.endswith(PROTOCOL) and row[name]):
            other = first.setdefault((row["concept"], column), row)
            if difference := protocols[other[column]].difference(protocols[row[column]]):
                raise ErasureError(
                    f"{_called(other)} and {_called(row)} were measured differently and cannot"
                    f" stand in one summary. They differ in {difference}. Delete one's folder and"
                    " run the benchmark again."
                )


def _called(row: Row) -> str:
    return f"{row['method']} {row['concept']} seed {row['seed']}"


def save(folder: Path, table: Sequence[Row], protocols: Mapping[str, Protocol]) -> None:
    """Write ``table.csv``, where pyarrow is installed ``table.parquet``, and ``protocols.json`` by
    identity.
    """
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(table[0]))
    writer.writeheader()
    writer.writerows(table)
    write_atomically(folder / "table.csv", text.getvalue().encode())
    content = {identity: asdict(protocol) for identity, protocol in sorted(protocols.items())}
    write_json(folder / "protocols.json", content)
    if (parquet := _parquet(table)) is not None:
        write_atomically(folder / "table.parquet", parquet)


def _parquet(table: Sequence[Row]) -> bytes | None:
    """The table as Parquet; None where pyarrow is not installed."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ModuleNotFoundError:
        return None
    texts = {"method", "concept", "group", "status", "message"} | {
        name for name in table[0] if name.endswith(PROTOCOL)
    }
    whole = {"seed", "steps", "trained_parameters", "evaluations", "backwards"}
    schema = pyarrow.schema(
        (
            name,
            (
                pyarrow.string()
                if name in texts
                else pyarrow.int64()
                if name in whole
                else pyarrow.float64()
            ),
        )
        for name in table[0]
    )
    sink = pyarrow.BufferOutputStream()
    parquet.write_table(pyarrow.Table.from_pylist(list(table), schema=schema), sink)
    return bytes(sink.getvalue())
