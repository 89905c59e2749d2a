"""Concepts out of a file: a CSV, a YAML, or a text file with one name a line."""

import difflib
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

import yaml

from erasure_lightning.concepts.concept import Concept
from erasure_lightning.concepts.name_lists import HOW_TO_LIST, mistaken_for, read_names
from erasure_lightning.errors import ErasureError
from erasure_lightning.files.csv_table import read_heading, read_table
from erasure_lightning.files.strict_yaml import StrictLoader, read_yaml
from erasure_lightning.files.text_files import read_text
from erasure_lightning.files.words import cleaned

#: What a concept can say of itself: name, anchor, domain, kind.
CONCEPT_FIELDS: tuple[str, ...] = tuple(field.name for field in fields(Concept))

_KINDS: tuple[str, ...] = get_args(get_type_hints(Concept)["kind"])

#: How published lists head their names (SPEED has ``id,concept``), and columns that only count
#: rows.
_ALSO = {"concept": "name"}
_COUNTING = ("", "id", "index", "unnamed: 0")

#: A line's number, and the name or the fields it holds.
_Entry = tuple[int, Any]


def read_concepts(path: Path) -> list[Concept]:
    """The concepts in a file.

    Args:
        path: A ``.csv`` (or ``.tsv``) with a column ``name`` and optionally ``anchor``, ``domain``
            (its words separated by ``;``) and ``kind``, or with names alone; a ``.yaml`` with a
            list of names or of mappings, or with one mapping, or the same as ``.json``; a ``.txt``
            with one name a line.

    Raises:
        ErasureError: If the file is missing, empty, not UTF-8 or of no such format; if it has a
            column that no concept has; if a concept in it is wrong, or looks like something else
            than a concept, with its line.
    """
    structured = {".yaml": _yaml, ".yml": _yaml, ".json": _json}
    reader = (structured | {".csv": _table_or_names, ".tsv": _table_or_names, ".txt": _names}).get(
        path.suffix.lower()
    )
    if not path.is_file():
        raise ErasureError(
            f"Concepts need a list, or a CSV, YAML or text file; found no file {str(path)!r}."
        )
    if reader is None:
        known = ".csv, .tsv, .yaml, .yml, .json and .txt"
        raise ErasureError(f"Concepts are read from {known}; found {path}. Rename or convert it.")
    text = read_text(path)
    if text.lstrip().startswith(("[", "{")):
        reader = _json
    concepts = [read_entry(entry, f"{path}, line {line}") for line, entry in reader(path, text)]
    if not concepts:
        raise ErasureError(f"{path} needs at least one concept; found none.")
    return concepts


def _names(path: Path, text: str) -> Iterator[_Entry]:
    """One name a line, or a table all the same where the first line is the heading of one."""
    _, columns = read_heading(text, (*CONCEPT_FIELDS, *_ALSO))
    is_table = len(columns) > 1 and {*columns} <= {*CONCEPT_FIELDS, *_ALSO, *_COUNTING}
    return _table(path, text) if is_table else read_names(path, text)


def _table_or_names(path: Path, text: str) -> Iterator[_Entry]:
    _, columns = read_heading(text, (*CONCEPT_FIELDS, *_ALSO))
    return _table(path, text) if len(columns) > 1 else read_names(path, text)


def _table(path: Path, text: str) -> Iterator[_Entry]:
    table = read_table(path, text, (*CONCEPT_FIELDS, *_ALSO))
    _check_columns([_ALSO.get(column, column) for column in table.columns], table.where)
    for row in table.rows:
        cells = {
            _ALSO.get(key, key): cell for key, cell in row.cells.items() if key not in _COUNTING
        }
        if re.match(r"#|[-*•]\s|[\[{]", cells["name"]):
            raise ErasureError(
                f"{row.where}: found {cells['name']!r} as a name. Take comments and bullets out."
            )
        yield int(row.where.rpartition(" ")[2]), cells


def _check_columns(columns: list[str], where: str) -> None:
    if not {*CONCEPT_FIELDS} & {*columns}:
        raise ErasureError(
            f"{where}: a heading is needed; found {', '.join(columns)}. {HOW_TO_LIST}"
        )
    if unknown := [column for column in columns if column not in (*CONCEPT_FIELDS, *_COUNTING)]:
        raise ErasureError(f"{where}: unknown column {unknown[0]!r}{_meant(unknown[0])}")
    if twice := [column for column in columns if column and columns.count(column) > 1]:
        raise ErasureError(
            f"{where}: each column may stand once; found {twice[0]!r} more than once."
        )
    if "name" not in columns:
        raise ErasureError(f"{where}: a column name is needed; found {', '.join(columns)}.")


def _yaml(path: Path, text: str) -> Iterator[_Entry]:
    try:
        node, content = yaml.compose(text, Loader=StrictLoader), read_yaml(text)
    except yaml.YAMLError as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        where = f"{path}, line {mark.line + 1}" if mark else str(path)
        how = "" if path.suffix.lower() in (".yaml", ".yml") else f" {HOW_TO_LIST}"
        raise ErasureError(f"{where}: no valid YAML ({problem or error}).{how}") from error
    if node is None or content is None:
        return iter(())
    if not isinstance(content, list | dict):
        raise ErasureError(f"{path} needs a list of concepts, `- name` lines; found {content!r}.")
    nodes, entries = (node.value, content) if isinstance(content, list) else ([node], [content])
    return (_plain(path, *pair) for pair in zip(nodes, entries, strict=True))


def _json(path: Path, text: str) -> Iterator[_Entry]:
    """The same as JSON, whose escapes are not YAML's; and as YAML where it is none."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if twice := [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]:
            raise ErasureError(
                f"{path}: no valid JSON (found {twice[0]!r} twice in {dict(pairs)})."
            )
        return dict(pairs)

    try:
        content = json.loads(text, object_pairs_hook=once)
    except ValueError:
        return _yaml(path, text)
    return ((1, entry) for entry in (content if isinstance(content, list) else [content]))


def _plain(path: Path, node: yaml.Node, entry: Any) -> _Entry:
    line = node.start_mark.line + 1
    if (
        isinstance(node, yaml.ScalarNode)
        and not node.style
        and isinstance(entry, str)
        and mistaken_for(entry)
    ):
        raise ErasureError(
            f"{path}, line {line}: {entry!r} looks like {mistaken_for(entry)}. {HOW_TO_LIST}"
        )
    return line, entry


def read_entry(entry: Any, where: str) -> Concept:
    """A concept as YAML says it.

    Args:
        entry: Its name, or a mapping of its fields; what is left empty takes its default.
        where: The place, for errors.

    Raises:
        ErasureError: If a field is unknown or its value wrong.
    """
    given = {str(k): v for k, v in entry.items()} if isinstance(entry, Mapping) else {"name": entry}
    if unknown := [key for key in given if key not in CONCEPT_FIELDS]:
        raise ErasureError(f"{where}: a concept has no {unknown[0]!r}{_meant(unknown[0])}")
    words = {key: _word(given.get(key), key, where) for key in ("name", "anchor", "kind")}
    kind = words["kind"] or _KINDS[0]
    if kind not in _KINDS:
        raise ErasureError(f"{where}: kind needs one of {', '.join(_KINDS)}; found {kind!r}.")
    domain = given.get("domain") or []
    listed = (
        re.split("[;,]", domain)
        if isinstance(domain, str)
        else domain
        if isinstance(domain, list)
        else [domain]
    )
    near = [word for item in listed if (word := _word(item, "domain", where))]
    try:
        return Concept(words["name"], words["anchor"], near, kind)  # type: ignore[arg-type]  # checked above
    except ErasureError as error:
        raise ErasureError(f"{where}: {error}") from error


def _word(value: Any, key: str, where: str) -> str:
    if value is not None and not isinstance(value, str):
        raise ErasureError(
            f"{where}: {key} needs text; found {value!r}. Words that YAML takes for more go in"
            " quotes."
        )
    word = cleaned(value or "")
    if any(unicodedata.category(sign) == "Cc" for sign in word):
        raise ErasureError(f"{where}: {key} needs text that can be read; found {word!r}.")
    return word


def _meant(word: str) -> str:
    near = difflib.get_close_matches(word.casefold(), CONCEPT_FIELDS, n=1)
    return f". Did you mean {near[0]!r}?" if near else f". Known: {', '.join(CONCEPT_FIELDS)}."
