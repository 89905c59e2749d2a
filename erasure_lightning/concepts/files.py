"""Reads concepts from a file: a CSV, a YAML, a JSON, or a text file with one name per line."""

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, cast

import yaml

from erasure_lightning.concepts.concept import Concept, ConceptKind, Concepts
from erasure_lightning.concepts.name_lists import HOW_TO_LIST, mistaken_for, read_names
from erasure_lightning.errors import ErasureError
from erasure_lightning.files.csv_table import read_heading, read_table
from erasure_lightning.files.strict_yaml import StrictLoader, read_yaml, yaml_error
from erasure_lightning.files.text_files import read_text
from erasure_lightning.files.words import cleaned, did_you_mean

#: Fields of a concept: name, anchor, domain, kind.
CONCEPT_FIELDS: tuple[str, ...] = tuple(field.name for field in fields(Concept))

_KNOWN_FIELDS = f" Known: {', '.join(CONCEPT_FIELDS)}."

#: Other headings of published lists (SPEED has ``id,concept``), and columns that only count rows.
_ALSO = {"concept": "name"}
_COUNTING = ("", "id", "index", "unnamed: 0")

#: A line's number, and its name or fields.
_Entry = tuple[int, Any]


def read_concepts(path: Path) -> list[Concept]:
    """Reads the concepts in a file.

    Args:
        path: A ``.csv`` (or ``.tsv``) with a column ``name`` and optionally ``anchor``, ``domain``
            (its words separated by ``;``) and ``kind``, or with names alone; a ``.yaml`` with a
            list of names or of mappings, or with one mapping, or the same as ``.json``; a ``.txt``
            with one name per line.

    Raises:
        ErasureError: If the file is missing, empty, not UTF-8 or of another format; if it has an
            unknown column; if an entry, named by its line, is no valid concept.
    """
    reader = _READERS.get(path.suffix.lower())
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


def as_concepts(concepts: Concepts | list[Concept] | str) -> list[Concept]:
    """Concepts as a list: those of a file, by its name, of an option, or as they are."""
    if isinstance(concepts, str):
        return read_concepts(Path(concepts))
    return list(concepts.listed) if isinstance(concepts, Concepts) else concepts


def is_concept_file(name: str) -> bool:
    """Whether a text is the name of a file of concepts, by its ending, and not a concept's."""
    return Path(name).suffix.lower() in _READERS


def _names(path: Path, text: str) -> Iterator[_Entry]:
    """One name per line, or a table where the first line is a heading of several columns."""
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
        named = {key: cell for key, cell in row.cells.items() if key not in _COUNTING}
        cells = {_ALSO.get(key, key): cell for key, cell in named.items()}
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
        raise ErasureError(f"{where}: unknown column {unknown[0]!r}{_suggestion(unknown[0])}")
    if repeated := [column for column in columns if column and columns.count(column) > 1]:
        raise ErasureError(
            f"{where}: each column may occur once; found {repeated[0]!r} more than once."
        )
    if "name" not in columns:
        raise ErasureError(f"{where}: a column name is needed; found {', '.join(columns)}.")


def _yaml(path: Path, text: str) -> Iterator[_Entry]:
    try:
        node = yaml.compose(text, Loader=StrictLoader)
        content = read_yaml(text)
    except yaml.YAMLError as error:
        is_yaml = path.suffix.lower() in (".yaml", ".yml")
        raise yaml_error(path, error, "" if is_yaml else f" {HOW_TO_LIST}") from error
    if node is None or content is None:
        return iter(())
    if not isinstance(content, list | dict):
        raise ErasureError(f"{path} needs a list of concepts, `- name` lines; found {content!r}.")
    nodes, entries = (node.value, content) if isinstance(content, list) else ([node], [content])
    return (_plain(path, *pair) for pair in zip(nodes, entries, strict=True))


def _json(path: Path, text: str) -> Iterator[_Entry]:
    """Entries of a JSON document, or of a YAML document that begins like one."""

    def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        counts = Counter(key for key, _ in pairs)
        if repeated := [key for key, count in counts.items() if count > 1]:
            raise ErasureError(
                f"{path}: no valid JSON (found {repeated[0]!r} twice in {dict(pairs)})."
            )
        return dict(pairs)

    try:
        content = json.loads(text, object_pairs_hook=unique_keys)
    except ValueError:
        return _yaml(path, text)
    entries = content if isinstance(content, list) else [content]
    return ((1, entry) for entry in entries)


def _plain(path: Path, node: yaml.Node, entry: Any) -> _Entry:
    line = node.start_mark.line + 1
    unquoted = isinstance(node, yaml.ScalarNode) and not node.style
    if unquoted and isinstance(entry, str) and mistaken_for(entry):
        raise ErasureError(
            f"{path}, line {line}: {entry!r} looks like {mistaken_for(entry)}. {HOW_TO_LIST}"
        )
    return line, entry


def read_entry(entry: Any, where: str) -> Concept:
    """A concept from an entry of a YAML or JSON document.

    Args:
        entry: Its name, or a mapping of its fields; empty fields take their defaults.
        where: File and line, for errors.

    Raises:
        ErasureError: If a field is unknown or its value invalid.
    """
    mapping = entry if isinstance(entry, Mapping) else {"name": entry}
    values = {str(key): value for key, value in mapping.items()}
    if unknown := [key for key in values if key not in CONCEPT_FIELDS]:
        raise ErasureError(f"{where}: a concept has no {unknown[0]!r}{_suggestion(unknown[0])}")
    words = {key: _word(values.get(key), key, where) for key in ("name", "anchor", "kind")}
    domain = values.get("domain") or []
    if isinstance(domain, str):
        domain = re.split("[;,]", domain)
    items = domain if isinstance(domain, list) else [domain]
    synonyms = [word for item in items if (word := _word(item, "domain", where))]
    try:
        kind = cast(ConceptKind, words["kind"] or "thing")
        return Concept(words["name"], words["anchor"], synonyms, kind)
    except ErasureError as error:
        raise ErasureError(f"{where}: {error}") from error


def _word(value: Any, key: str, where: str) -> str:
    if value is not None and not isinstance(value, str):
        raise ErasureError(
            f"{where}: {key} needs text; found {value!r}. Words that YAML takes for more go in"
            " quotes."
        )
    word = cleaned(value or "")
    if any(unicodedata.category(character) == "Cc" for character in word):
        raise ErasureError(f"{where}: {key} needs text that can be read; found {word!r}.")
    return word


def _suggestion(word: str) -> str:
    return f".{did_you_mean(word, CONCEPT_FIELDS) or _KNOWN_FIELDS}"


#: Reader of a file by its ending.
_READERS = {
    ".csv": _table_or_names,
    ".tsv": _table_or_names,
    ".yaml": _yaml,
    ".yml": _yaml,
    ".json": _json,
    ".txt": _names,
}
