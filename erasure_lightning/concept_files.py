"""Concepts out of a file: a CSV, a YAML, or a text file with one name a line."""

import csv
import difflib
import io
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

import yaml

from erasure_lightning.concepts import Concept
from erasure_lightning.errors import ErasureError

#: What a concept can say of itself: name, anchor, domain, kind.
FIELDS: tuple[str, ...] = tuple(field.name for field in fields(Concept))

_KINDS: tuple[str, ...] = get_args(get_type_hints(Concept)["kind"])

#: Headings of a CSV with a single column; without one, its first line is a name like the others.
_HEADINGS = ("name", "names", "concept", "concepts")

#: A line's number, and the name or the fields it holds.
_Entry = tuple[int, Any]


def read_concepts(path: Path) -> list[Concept]:
    """The concepts in a file.

    Args:
        path: A ``.csv`` with a column ``name`` and optionally ``anchor``, ``domain`` (its words separated by ``;``) and
            ``kind``, or with names alone; a ``.yaml`` with a list of names or of mappings, or with one mapping; a
            ``.txt`` with one name a line.

    Raises:
        ErasureError: If the file is missing, empty, not UTF-8 or of no such format; if it has a column that no concept
            has; if a concept in it is wrong, with its line.
    """
    reader = {".csv": _csv, ".yaml": _yaml, ".yml": _yaml, ".txt": _lines}.get(path.suffix.lower())
    if not path.is_file():
        raise ErasureError(f"Concepts need a list, or a CSV, YAML or text file; found no file {str(path)!r}.")
    if reader is None:
        raise ErasureError(f"Concepts are read from .csv, .yaml, .yml and .txt; found {path}. Rename or convert it.")
    concepts = [read_entry(entry, f"{path}, line {line}") for line, entry in reader(path, _text(path))]
    if not concepts:
        raise ErasureError(f"{path} needs at least one concept; found none.")
    return concepts


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ErasureError(f"{path} needs to be UTF-8; found another encoding at byte {error.start}.") from error
    except OSError as error:
        raise ErasureError(f"{path} could not be read: {error.strerror}.") from error


def _lines(path: Path, text: str) -> Iterator[_Entry]:
    yield from ((number, line) for number, line in enumerate(text.splitlines(), start=1) if line.strip())


def _csv(path: Path, text: str) -> Iterator[_Entry]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, skipinitialspace=True)
    try:
        rows = [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    except csv.Error as error:
        raise ErasureError(f"{path}, line {reader.line_num}: no valid CSV ({error}).") from error
    if all(len(row) == 1 for _, row in rows):
        headed = bool(rows) and rows[0][1][0].strip().casefold() in _HEADINGS
        return iter([(line, row[0]) for line, row in rows[headed:]])
    (line, header), *rows = rows
    columns = [cell.strip().casefold() for cell in header]
    _check_columns(columns, f"{path}, line {line}")
    return _rows(path, columns, rows)


def _rows(path: Path, columns: list[str], rows: list[tuple[int, list[str]]]) -> Iterator[_Entry]:
    for line, row in rows:
        if len(row) > len(columns):
            raise ErasureError(
                f"{path}, line {line}: found {len(row)} cells under {len(columns)} columns. Put cells with commas in "
                "double quotes, and separate a domain's words with ';'."
            )
        yield line, {"name": ""} | dict(zip(columns, row, strict=False))


def _check_columns(columns: list[str], where: str) -> None:
    if unknown := [column for column in columns if column not in FIELDS]:
        raise ErasureError(f"{where}: unknown column {unknown[0]!r}{_meant(unknown[0])}")
    if twice := [column for column in columns if columns.count(column) > 1]:
        raise ErasureError(f"{where}: each column may stand once; found {twice[0]!r} more than once.")
    if "name" not in columns:
        raise ErasureError(f"{where}: a column name is needed; found {', '.join(columns)}.")


def _yaml(path: Path, text: str) -> Iterator[_Entry]:
    try:
        node, content = yaml.compose(text, Loader=yaml.SafeLoader), yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise ErasureError(f"{path}{where}: no valid YAML ({getattr(error, 'problem', None) or error}).") from error
    if node is None or content is None:
        return iter(())
    if not isinstance(content, list | dict):
        raise ErasureError(f"{path} needs a list of concepts, `- name` lines; found {content!r}.")
    nodes, entries = (node.value, content) if isinstance(content, list) else ([node], [content])
    return ((node.start_mark.line + 1, entry) for node, entry in zip(nodes, entries, strict=True))


def read_entry(entry: Any, where: str) -> Concept:
    """A concept as YAML says it.

    Args:
        entry: Its name, or a mapping of its fields; what is left empty takes its default.
        where: The place, for errors.

    Raises:
        ErasureError: If a field is unknown or its value wrong.
    """
    given = {str(k): v for k, v in entry.items()} if isinstance(entry, Mapping) else {"name": entry}
    if unknown := [key for key in given if key not in FIELDS]:
        raise ErasureError(f"{where}: a concept has no {unknown[0]!r}{_meant(unknown[0])}")
    words = {key: _word(given.get(key), key, where) for key in ("name", "anchor", "kind")}
    kind = words["kind"] or _KINDS[0]
    if kind not in _KINDS:
        raise ErasureError(f"{where}: kind needs one of {', '.join(_KINDS)}; found {kind!r}.")
    domain = given.get("domain") or []
    listed = domain.split(";") if isinstance(domain, str) else domain if isinstance(domain, list) else [domain]
    near = [word for item in listed if (word := _word(item, "domain", where))]
    try:
        return Concept(words["name"], words["anchor"], near, kind)  # type: ignore[arg-type]  # checked above
    except ErasureError as error:
        raise ErasureError(f"{where}: {error}") from error


def _word(value: Any, key: str, where: str) -> str:
    if value is not None and not isinstance(value, str):
        raise ErasureError(f"{where}: {key} needs text; found {value!r}. Words that YAML takes for more go in quotes.")
    return (value or "").strip()


def _meant(word: str) -> str:
    near = difflib.get_close_matches(word.casefold(), FIELDS, n=1)
    return f". Did you mean {near[0]!r}?" if near else f". Known: {', '.join(FIELDS)}."
