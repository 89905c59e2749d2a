"""Tables from CSV files: the reader for lists of concepts and of prompts."""

import csv
import io
import math
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from erasure_lightning.errors import ErasureError
from erasure_lightning.files.words import folded

#: Known delimiters of cells.
_DELIMITERS = (",", ";", "\t", "|")


class CsvRow(NamedTuple):
    """A row of a table.

    Args:
        where: Its file and line, for errors.
        cells: Text of its cells, by column.
    """

    where: str
    cells: Mapping[str, str]

    def whole(self, column: str, least: int, most: int) -> int:
        """A cell as a whole number; ``3.0``, as in saved tables with gaps, is one.

        Args:
            column: The cell's column.
            least: Smallest permitted number, at least 0.
            most: Largest permitted number.

        Raises:
            ErasureError: If it is no whole number or out of range.
        """
        text = self.cells[column].strip()
        digits = text.removesuffix(".0")
        if not (digits.isascii() and digits.isdecimal() and least <= int(digits[:40]) <= most):
            raise ErasureError(
                f"{self.where}, column {column}: a whole number from {least} to {most} is needed;"
                f" found {text!r}."
            )
        return int(digits)

    def real(self, column: str) -> float:
        """A cell as a number of at least 0.

        Raises:
            ErasureError: If it is no number, negative or not finite.
        """
        text = self.cells[column].strip()
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and value >= 0):
            raise ErasureError(
                f"{self.where}, column {column}: a number of at least 0 is needed; found {text!r}."
            )
        return value


class CsvTable(NamedTuple):
    """A CSV file's content.

    Args:
        where: The file and the line of its heading, for errors.
        columns: Its heading, folded.
        rows: All rows that are not empty.
    """

    where: str
    columns: list[str]
    rows: list[CsvRow]


def read_heading(text: str, known: Collection[str]) -> tuple[str, list[str]]:
    """The delimiter of a CSV, and its columns.

    Args:
        text: The file's content.
        known: Columns that decide which delimiter a file has.
    """
    first = next((line for line in text.splitlines() if not _precedes_heading(line)), "")
    columns = {d: [folded(cell) for row in _parsed(first, d) for cell in row] for d in _DELIMITERS}
    best = max(
        _DELIMITERS,
        key=lambda d: (len({*columns[d]} & {*known}), len(columns[d]) > 1 and first.count(d)),
    )
    return best, columns[best]


def _precedes_heading(line: str) -> bool:
    """Whether a line precedes the heading: empty, a comment, or Excel's ``sep=``."""
    start = line.strip().casefold()
    return not start or start.startswith("#") or start in {f"sep={d}".strip() for d in _DELIMITERS}


def _parsed(line: str, delimiter: str) -> list[list[str]]:
    try:
        return list(csv.reader([line], delimiter=delimiter, skipinitialspace=True))
    except csv.Error:
        return []


def read_table(path: Path, text: str, known: Collection[str]) -> CsvTable:
    """Reads the table in a CSV file.

    Args:
        path: The file, for errors.
        text: Its content.
        known: Columns that decide which delimiter (``,``, ``;``, tab or ``|``) it has.

    Raises:
        ErasureError: If it is no CSV, a column occurs twice, or a row has another number of cells
            than the heading.
    """
    delimiter, columns = read_heading(text, known)
    rows = list(_rows(path, text, delimiter))
    where = f"{path}, line {rows[0][0]}" if rows else str(path)
    if repeated := [column for column in columns if column and columns.count(column) > 1]:
        raise ErasureError(
            f"{where}: each column may stand once; found {repeated[0]!r} more than once."
        )
    for line, row in rows:
        if len(row) != len(columns):
            raise ErasureError(
                f"{path}, line {line}: found {len(row)} cells under {len(columns)} columns. Put"
                f" cells that hold {delimiter!r} in double quotes, and leave cells empty rather"
                " than out."
            )
    cells = [(line, dict(zip(columns, row, strict=True))) for line, row in rows[1:]]
    return CsvTable(where, columns, [CsvRow(f"{path}, line {line}", row) for line, row in cells])


def _rows(path: Path, text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Rows from the heading on, with their first lines."""
    lines = text.splitlines(keepends=True)
    skipped = next((i for i, line in enumerate(lines) if not _precedes_heading(line)), len(lines))
    below = io.StringIO("".join(lines[skipped:]), newline="")
    reader = csv.reader(below, delimiter=delimiter, strict=True, skipinitialspace=True)
    line = skipped + 1
    try:
        for row in reader:
            if any(cell.strip() for cell in row):
                yield line, row
            line = skipped + reader.line_num + 1
    except csv.Error as error:
        is_json = text.lstrip().startswith(("[", "{"))
        hint = "It is JSON; write a heading and rows." if is_json else "Is a double quote missing?"
        raise ErasureError(f"{path}, line {line}: no valid CSV ({error}). {hint}") from error
