"""`RunRecord`: the content of a run's folder, read without torch."""

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
from erasure_lightning.registry import METHOD, known_offers
from erasure_lightning.report.curves import Curve, read_curves
from erasure_lightning.report.edit_file import EditFile, read_edit_file
from erasure_lightning.report.images import ImagePair, is_readable_image, read_image_pairs
from erasure_lightning.report.privacy import without_paths
from erasure_lightning.runs.folder import Run, run_of


class AttackRecord(NamedTuple):
    """An attack on the edit.

    Args:
        outcome: Its outcome.
        grid: The file with its images; None if there is none.
    """

    outcome: Outcome
    grid: Path | None


@dataclass(frozen=True)
class RunRecord:
    """Content of a run's folder.

    Args:
        name: Name of the folder, without the rest of its path.
        figures_folder: Folder of the figures and images within the run's; ``.`` for those of
            ``fit``.
        method: Class name of the method.
        package: Distribution of the method with its version; empty if it is not installed.
        paper: Reference of the method; empty if its package names none.
        concepts: The erased concepts.
        metadata: The edit's metadata from ``edit.safetensors``, else from ``metrics.json`` or
            ``config.yaml``.
        edit: Summary of the edit's file; None if the run has not finished.
        result: The figures; None if they were not measured.
        attacks: Outcomes of attacks on the edit.
        curves: Values that were logged during training.
        cost: Content of ``cost.json``.
        config: Text of ``config.yaml`` without paths of the machine; empty without the file.
        test_options: Options of ``erasure test``, if it measured the figures.
        image_pairs: Images before and after the edit, from the same noise.
        grid: File with all of these images, for runs without single ones.
        notes: Sentences on what is missing or could not be read.
    """

    name: str
    figures_folder: str
    method: str
    package: str
    paper: str
    concepts: tuple[Concept, ...]
    metadata: dict[str, Any]
    edit: EditFile | None
    result: Result | None
    attacks: tuple[AttackRecord, ...]
    curves: tuple[Curve, ...]
    cost: dict[str, float]
    config: str
    test_options: tuple[str, ...]
    image_pairs: tuple[ImagePair, ...]
    grid: Path | None
    notes: tuple[str, ...]


def read_run_record(path: Path) -> RunRecord:
    """Read a run's folder, or a folder of ``erasure test`` within one.

    Cost, curves, attacks or images that cannot be read are left out, with a note.

    Raises:
        ErasureError: If it is no run's folder, or its edit, config or figures cannot be read.
    """
    run, measured = _folders(path)
    notes: list[str] = []
    edit = read_edit_file(run.edit) if run.edit.is_file() else None
    result = Result.load(measured.metrics) if measured.metrics.is_file() else None
    config = _config(run.config)
    metadata = _metadata(edit, result, config)
    class_path = str(metadata.get("method", ""))
    offer = next(
        (method for method in known_offers(METHOD) if method.class_path == class_path), None
    )
    return RunRecord(
        name=run.name,
        figures_folder=measured.root.name if measured != run else ".",
        method=class_path.rpartition(".")[2],
        package=offer.package if offer else "",
        paper=offer.paper if offer else "",
        concepts=_concepts(metadata, run),
        metadata=without_paths(metadata),
        edit=edit,
        result=result,
        attacks=tuple(_attacks(run, edit, notes)),
        curves=read_curves(run.log, notes),
        cost=_cost(run.cost, notes),
        config=config,
        test_options=_test_options(config, _config(measured.config)),
        image_pairs=read_image_pairs(measured.samples, notes),
        grid=measured.grid if is_readable_image(measured.grid) else None,
        notes=tuple(notes),
    )


def _folders(path: Path) -> tuple[Run, Run]:
    """The run's folder and the folder of its figures.

    Figures lie beside the edit, else in the newest folder of ``erasure test``.
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
    """A config's text without paths; changed in the YAML document, so that types remain."""
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
    _remove_paths(document)
    return yaml.serialize(document, allow_unicode=True, width=10_000)


def _remove_paths(node: yaml.Node) -> None:
    if isinstance(node, yaml.ScalarNode):
        node.value = without_paths(node.value)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _remove_paths(item)
    elif isinstance(node, yaml.MappingNode):
        for _, value in node.value:
            _remove_paths(value)


def _test_options(config: str, test_config: str) -> tuple[str, ...]:
    """Options of the data that differ between the configs of ``erasure test`` and of the run."""
    own = _section(config, "data")
    changed = {
        name: value
        for name, value in _section(test_config, "data").items()
        if value != own.get(name)
    }
    return tuple(
        f"--data.{name} {shlex.quote(json.dumps(value))}" for name, value in changed.items()
    )


def _section(config: str, name: str) -> dict[str, Any]:
    content = yaml.safe_load(config) if config else None
    section = content.get(name) if isinstance(content, dict) else None
    return section if isinstance(section, dict) else {}


def _metadata(edit: EditFile | None, result: Result | None, config: str) -> dict[str, Any]:
    if edit:
        return edit.metadata
    return result.edit if result else _planned_metadata(config)


def _planned_metadata(config: str) -> dict[str, Any]:
    """Metadata of an unfinished run's edit, as far as its config has it."""
    model = _section(config, "model")
    arguments = model.get("init_args") or {}
    return {
        "method": model.get("class_path", ""),
        "concepts": arguments.get("concepts", []),
        "backbone": arguments.get("backbone", ""),
        "seed": arguments.get("seed", ""),
    }


def _concepts(metadata: dict[str, Any], run: Run) -> tuple[Concept, ...]:
    concepts = metadata.get("concepts", [])
    if not isinstance(concepts, list):
        return ()
    try:
        return tuple(Concept(**concept) for concept in concepts)
    except TypeError as error:
        raise ErasureError(
            f"{run.root} needs concepts as `erasure fit` writes them; found others ({error})."
        ) from error


def _attacks(run: Run, edit: EditFile | None, notes: list[str]) -> Iterator[AttackRecord]:
    for path in sorted(run.attacks.glob(f"*/{OUTCOME_FILE}")):
        folder = f"attacks/{path.parent.name}"
        try:
            outcome = Outcome.load(path)
        except ErasureError:
            notes.append(f"{folder} cannot be read and is left out.")
            continue
        if edit and outcome.edit and not edit.sha256.startswith(outcome.edit):
            notes.append(f"{folder} is an attack on another edit ({outcome.edit}) and is left out.")
            continue
        grid = path.with_name("grid.png")
        yield AttackRecord(outcome, grid if is_readable_image(grid) else None)


def _cost(path: Path, notes: list[str]) -> dict[str, float]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        cost = {name: float(value) for name, value in content.items()}
    except (ValueError, TypeError, AttributeError, OSError):
        notes.append(f"{path.name} cannot be read: the cost is left out.")
        return {}
    return {name: value for name, value in cost.items() if math.isfinite(value)}
