"""`Facts`: everything a run's folder says of itself, read without torch."""

import json
import math
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from erasure_lightning.attacks.outcome import OUTCOME_FILE, Outcome
from erasure_lightning.concepts.concept import Concept
from erasure_lightning.errors import ErasureError
from erasure_lightning.metrics.protocol import Result
from erasure_lightning.registry import known_methods
from erasure_lightning.report.curves import Curve, read_curves
from erasure_lightning.report.edit_file import EditFile, read_edit_file
from erasure_lightning.report.pictures import Sample, is_whole, read_samples
from erasure_lightning.report.privacy import without_paths
from erasure_lightning.runs.folder import Run, run_of


class Attempt(NamedTuple):
    """An attack on the edit: what it brought back, and the pictures of it where there are any."""

    outcome: Outcome
    grid: Path | None


@dataclass(frozen=True)
class Facts:
    """A run.

    Args:
        name: Of its folder; the rest of its path is nobody's business.
        measured: Folder of the figures and pictures within the run's; ``.`` for those of ``fit``.
        method: Class name of the method.
        package: Distribution of the method with version, empty where it is not installed.
        paper: Where the method was published, empty where its package does not say.
        concepts: What was erased.
        about: What the edit was made from, as ``edit.safetensors`` or else ``metrics.json`` or
            ``config.yaml`` says.
        edit: The file; ``None`` of a run that has not finished.
        result: What was measured, if it was.
        attacks: What attacks brought back.
        curves: What was logged while training.
        cost: What training took, as ``cost.json`` says.
        config: The run's config as text, without paths of the machine; empty without one.
        test_options: What ``erasure test`` was asked for besides, where figures were measured
            apart.
        samples: Pairs of pictures from equal noise.
        grid: The same as one picture, for runs that have no single ones.
        notes: What is missing or could not be read, in sentences.
    """

    name: str
    measured: str
    method: str
    package: str
    paper: str
    concepts: tuple[Concept, ...]
    about: dict[str, Any]
    edit: EditFile | None
    result: Result | None
    attacks: tuple[Attempt, ...]
    curves: tuple[Curve, ...]
    cost: dict[str, float]
    config: str
    test_options: tuple[str, ...]
    samples: tuple[Sample, ...]
    grid: Path | None
    notes: tuple[str, ...]


def read_facts(path: Path) -> Facts:
    """Read a run's folder, or a folder of ``erasure test`` within one.

    What only adds to a report (cost, curves, attacks, pictures) and cannot be read ends in a note.

    Raises:
        ErasureError: If it is no run's folder, or its edit, config or figures cannot be read.
    """
    run, measured = _folders(path)
    notes: list[str] = []
    edit = read_edit_file(run.edit) if run.edit.is_file() else None
    result = Result.load(measured.metrics) if measured.metrics.is_file() else None
    config = _config(run.config)
    about = edit.metadata if edit else result.edit if result else _planned(config)
    class_path = str(about.get("method", ""))
    offered = next((m for m in known_methods() if m.class_path == class_path), None)
    return Facts(
        name=run.root.resolve().name,
        measured=measured.root.name if measured != run else ".",
        method=class_path.rpartition(".")[2],
        package=offered.package if offered else "",
        paper=offered.paper if offered else "",
        concepts=_concepts(about, run),
        about=without_paths(about),
        edit=edit,
        result=result,
        attacks=tuple(_attacks(run, edit, notes)),
        curves=read_curves(run.log, notes),
        cost=_cost(run.cost, notes),
        config=config,
        test_options=_test_options(config, _config(measured.config)),
        samples=read_samples(measured.samples, notes),
        grid=measured.grid if is_whole(measured.grid) else None,
        notes=tuple(notes),
    )


def _folders(path: Path) -> tuple[Run, Run]:
    """The run, and where its figures lie: beside the edit, or else in the newest folder of
    ``erasure test``.
    """
    if not path.exists():
        raise ErasureError(
            f"No run at {path}: there is no such folder. Give one that `erasure fit` wrote."
        )
    run = run_of(path)
    if not any(file.is_file() for file in (run.edit, run.config, run.metrics)):
        raise ErasureError(
            f"report needs the folder of a run; found none of {run.edit.name}, {run.config.name},"
            f" {run.metrics.name} in {run.root}. Give one that `erasure fit` wrote."
        )
    outer = Run(run.root.resolve().parent)
    if outer.edit.is_file() and not run.edit.exists():
        return outer, run
    return run, Run(run.figures.parent)


def _config(path: Path) -> str:
    """The config as it stands there, but for paths: values are exchanged within the document, types
    stay.
    """
    if not path.is_file():
        return ""
    try:
        document = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        problem = getattr(error, "problem", error)
        raise ErasureError(
            f"{path} needs to be the config of a run; found no valid YAML ({problem})."
        ) from error
    if document is None:  # an empty file
        return ""
    _strip(document)
    return yaml.serialize(document, allow_unicode=True, width=10_000)


def _strip(node: yaml.Node) -> None:
    if isinstance(node, yaml.ScalarNode):
        node.value = without_paths(node.value)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _strip(item)
    elif isinstance(node, yaml.MappingNode):
        for _, value in node.value:
            _strip(value)


def _test_options(config: str, measured: str) -> tuple[str, ...]:
    """Options of the data in which a measurement's config differs from the run's."""
    mine, theirs = (_section(text, "data") for text in (config, measured))
    changed = {name: value for name, value in theirs.items() if value != mine.get(name)}
    return tuple(
        f"--data.{name} {shlex.quote(json.dumps(value))}" for name, value in changed.items()
    )


def _section(config: str, name: str) -> dict[str, Any]:
    content = yaml.safe_load(config) if config else None
    section = content.get(name) if isinstance(content, dict) else None
    return section if isinstance(section, dict) else {}


def _planned(config: str) -> dict[str, Any]:
    """What an unfinished run was to make."""
    model = _section(config, "model")
    arguments = model.get("init_args") or {}
    known = {"backbone": arguments.get("backbone", ""), "seed": arguments.get("seed", "")}
    return {
        "method": model.get("class_path", ""),
        "concepts": arguments.get("concepts", []),
        **known,
    }


def _concepts(about: dict[str, Any], run: Run) -> tuple[Concept, ...]:
    given = about.get("concepts", [])
    try:
        return tuple(Concept(**concept) for concept in given) if isinstance(given, list) else ()
    except TypeError as error:
        raise ErasureError(
            f"{run.root} needs concepts as `erasure fit` notes them; found others ({error})."
        ) from error


def _attacks(run: Run, edit: EditFile | None, notes: list[str]) -> Iterator[Attempt]:
    for path in sorted(run.attacks.glob(f"*/{OUTCOME_FILE}")):
        where = f"attacks/{path.parent.name}"
        try:
            outcome = Outcome.load(path)
        except ErasureError:
            notes.append(f"{where} cannot be read and is left out.")
            continue
        if edit and outcome.edit and not edit.sha256.startswith(outcome.edit):
            notes.append(f"{where} was made on another edit ({outcome.edit}) and is left out.")
            continue
        grid = path.with_name("grid.png")
        yield Attempt(outcome, grid if is_whole(grid) else None)


def _cost(path: Path, notes: list[str]) -> dict[str, float]:
    if not path.is_file():
        return {}
    try:
        found = {
            name: float(value)
            for name, value in json.loads(path.read_text(encoding="utf-8")).items()
        }
    except (ValueError, TypeError, AttributeError, OSError):
        notes.append(f"{path.name} cannot be read: what the edit cost is left out.")
        return {}
    return {name: value for name, value in found.items() if math.isfinite(value)}
