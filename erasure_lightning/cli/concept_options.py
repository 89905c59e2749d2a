"""Concepts of a config or an option: lists, files by path and shipped files by name."""

import os
from pathlib import Path
from typing import Any

from erasure_lightning.api.configs import SHIPPED
from erasure_lightning.concepts.concept import Concepts
from erasure_lightning.concepts.files import CONCEPT_FIELDS, read_concepts, read_entry
from erasure_lightning.errors import ErasureError
from erasure_lightning.files.words import did_you_mean


def concepts(name: str) -> Concepts:
    """The concepts of a file, so that the run's config needs no other file.

    Raises:
        ErasureError: If there is no such file, or it cannot be read.
    """
    file = find_concepts(name)
    return Concepts(tuple(read_concepts(file)), file)


def concepts_option(name: str) -> dict[str, str]:
    """A file of concepts as an option's value.

    The parser's loader makes one value of it; a bare path the parser would read itself.

    Raises:
        ErasureError: If there is no such file.
    """
    return {"concepts": str(find_concepts(name))}


def concept_list(value: list[Any]) -> Any:
    """Concepts of a list of mappings as one value; any other list as it is, for the parser's error.

    Raises:
        ErasureError: If a concept's value is wrong, with its place.
    """
    if not all(
        isinstance(entry, dict) and "name" in entry and entry.keys() <= {*CONCEPT_FIELDS}
        for entry in value
    ):
        return value
    return Concepts(
        tuple(read_entry(entry, f"model.concepts[{i}]") for i, entry in enumerate(value))
    )


def find_concepts(name: str) -> Path:
    """A file of concepts by path, else a shipped one by name.

    Raises:
        ErasureError: If there is none, with the shipped one of the most similar name.
    """
    path = Path(name)
    shipped = SHIPPED / "concepts"
    ours = [shipped / name, shipped / f"{name}.yaml"] if path.parent == Path() else []
    for file in (path, *ours):
        if os.path.isfile(file):  # unlike Path.is_file no error where a name is too long
            return file
    known = sorted(p.stem for p in shipped.glob("*.yaml"))
    raise ErasureError(
        f"--model.concepts needs a list, or a CSV, YAML or text file; found no file {name!r}."
        f"{did_you_mean(path.stem, known)} A list looks like '[{{name: cigarette}}]'."
        f" Shipped files: {', '.join(known) or 'none'}."
    )
