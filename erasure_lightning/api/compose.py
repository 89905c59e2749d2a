"""`compose`: several edits of one model as one, by the sum of their differences."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from erasure_lightning.adapters.lora import weights_to_merge
from erasure_lightning.api.base_model import load_base_model
from erasure_lightning.concepts.concept import Concept
from erasure_lightning.edits.applied import Edit, load_edit
from erasure_lightning.edits.base_edits import titles
from erasure_lightning.edits.changes import components_of
from erasure_lightning.edits.components import (
    EditedComponent,
    component_fingerprints,
    is_same_component,
)
from erasure_lightning.edits.composition import (
    dense_values,
    overlaps,
    shared_names,
    summed,
    weight_names,
)
from erasure_lightning.edits.stack import stacked_values
from erasure_lightning.errors import ErasureError
from erasure_lightning.files.writing import EDIT_FILE, write_atomically
from erasure_lightning.runs.folder import CONFIG_FILE
from erasure_lightning.training.base_edits import earlier_concepts
from erasure_lightning.training.composition import Composition


def compose(*edits: Edit | str | Path, pipeline: Any = None, backbone: str | None = None) -> Edit:
    """Several edits of one model as one: the sum of their differences from it.

    Without training: in tensors that several edits change, the sum is what none of them was
    trained for. `Edit.report` lists these tensors, with cosines and sizes of the differences.

    Args:
        edits: At least two edits, their files or run folders, of one base model; each counts
            by its strength.
        pipeline: Their base model, without them or with them; by default it is loaded by the name
            that they have of it, if it is needed at all.
        backbone: Where that model is now, which the composition names; by default as the first
            edit names it.

    Returns:
        The edit, in no pipeline yet, which can be applied, saved and measured.

    Raises:
        ErasureError: If there is a single edit, or one twice, they have different base models,
            or one has adapters that cannot be merged.

    Example:
        >>> from erasure_lightning import compose, erase
        >>> from erasure_lightning.backbones.tiny import TinyBackbone
        >>> quiet = {"method": "UCE", "anchor": "dog", "progress_bar": False}
        >>> pipeline = TinyBackbone().to_pipeline()
        >>> cat = erase(pipeline, "cat", **quiet)
        >>> cat.remove()
        >>> star = erase(pipeline, "star", **quiet)
        >>> star.remove()
        >>> both = compose(cat, star, pipeline=pipeline)
        >>> both.apply(pipeline)
        Edit(Composition of cat, star, 8 tensors)
    """
    several = [edit if isinstance(edit, Edit) else load_edit(edit) for edit in edits]
    _check_distinct(several)
    for edit in several[1:]:
        _check_same_base(several[0], edit)
    strengths = [edit.strength for edit in several]
    changed = [weight_names(edit.tensors) for edit in several]
    names = shared_names(changed).union(*(weights_to_merge(edit.tensors) for edit in several))
    if any(strength != 1 for strength in strengths):
        names = names.union(*changed)
    base = _base_values(several, names, pipeline, backbone) if names else {}
    values = [dense_values(edit, base) for edit in several]
    titled = [edit.title for edit in several]
    overlap = [asdict(each) for each in overlaps(titled, values, base)]
    composed = summed(values, strengths, base)
    return Edit(composed, _metadata(several, composed, backbone) | {"overlap": overlap})


def _check_distinct(edits: Sequence[Edit]) -> None:
    if len(edits) < 2:
        raise ErasureError(f"compose needs at least two edits; found {len(edits)}.")
    prints = [edit.fingerprint for edit in edits]
    for number, edit in enumerate(edits):
        if edit.fingerprint in prints[:number]:
            where = f" ({edit.path})" if edit.path else ""
            raise ErasureError(f"compose needs each edit once; found {edit.title}{where} twice.")


def _check_same_base(one: Edit, other: Edit) -> None:
    """Raise unless two edits have the same base model.

    Raises:
        ErasureError: If they have not, or are based on different edits.
    """
    beneath, besides = ([e["fingerprint"] for e in edit.base_edits] for edit in (one, other))
    if beneath != besides:
        raise ErasureError(
            f"compose needs edits of one model; found {one.title} on {titles(one.base_edits)} and"
            f" {other.title} on {titles(other.base_edits)}. Apply them one on another with"
            " apply_edit, or train both on the same model."
        )
    a = one.metadata
    b = other.metadata
    prints = [(m.get("backbone_fingerprint"), m.get("backbone_bfloat16")) for m in (a, b)]
    (own, rounded), (theirs, theirs_rounded) = prints
    shared = a.get("fingerprints", {}).keys() & b.get("fingerprints", {}).keys()
    same = all(is_same_component(a["fingerprints"][n], b["fingerprints"][n]) for n in shared)
    if not same or not (own in (theirs, theirs_rounded) or rounded == theirs):
        raise ErasureError(
            f"compose needs edits of one model; found {one.title} of {a.get('backbone')}"
            f" ({own}) and {other.title} of {b.get('backbone')} ({theirs})."
        )


def _base_values(
    edits: Sequence[Edit], names: set[str], pipeline: Any, place: str | None
) -> dict[str, Tensor]:
    """Values of the edits' base model, by component and name.

    Raises:
        ErasureError: If the model cannot be loaded or is another one.
    """
    edit = edits[0]
    prints = _fingerprints(edits)
    with ExitStack() as undo:
        if pipeline is None:
            pipeline = load_base_model(edit.metadata, place).to_pipeline()
        for base in edit.apply_base_edits(pipeline):
            undo.callback(base.remove)
        beneath = {entry["fingerprint"] for entry in edit.base_edits}
        values: dict[str, Tensor] = {}
        for component in components_of(names):
            edited = EditedComponent(pipeline, component)
            stacked = stacked_values(edited.module, beneath)
            _require_base(edited, stacked, prints.get(component))
            own = {n: v.detach().clone() for n, v in edited.parameters().items()} | stacked
            values |= {f"{component}.{name}": value.cpu() for name, value in own.items()}
    if missing := sorted(names - values.keys()):
        raise ErasureError(
            f"compose needs the edits' base model; found {type(pipeline).__name__}"
            f" without {missing[0]}. Give it with pipeline=."
        )
    return {name: values[name] for name in names}


def _require_base(
    component: EditedComponent, stacked: Mapping[str, Tensor], prints: dict[str, str] | None
) -> None:
    """Raise unless a component, with values beneath the edits, is that of their base model."""
    if prints and not is_same_component(prints, component_fingerprints(component.module, stacked)):
        raise ErasureError(
            f"compose needs the edits' base model; found another"
            f" {component.title}. Give the pipeline of their base model with pipeline=."
        )


def _fingerprints(edits: Sequence[Edit]) -> dict[str, dict[str, str]]:
    """Fingerprints of the components of edits' base models, by name."""
    prints = [edit.metadata.get("fingerprints", {}) for edit in reversed(edits)]
    return {name: value for one in prints for name, value in one.items()}


def _metadata(
    edits: Sequence[Edit], tensors: Mapping[str, Tensor], place: str | None
) -> dict[str, Any]:
    """Metadata of the composition, with which it is measured like any other edit."""
    first = edits[0].metadata
    concepts = earlier_concepts([edit.metadata for edit in edits], [])
    listed = [asdict(concept) for concept in concepts]
    base = {key: first[key] for key in ("base_edits", "unedited_fingerprint") if key in first}
    arguments: dict[str, Any] = {"concepts": listed, "tensors": [*tensors]}
    arguments["backbone"] = place or first["backbone"]
    arguments["loras"] = first.get("arguments", {}).get("loras")
    return base | {
        "method": f"{Composition.__module__}.{Composition.__qualname__}",
        "arguments": arguments,
        "concepts": listed,
        "backbone": arguments["backbone"],
        "backbone_fingerprint": first.get("backbone_fingerprint"),
        "backbone_bfloat16": first.get("backbone_bfloat16"),
        "fingerprints": _fingerprints(edits),
        "composed": [
            {
                "edit": edit.title,
                "fingerprint": edit.fingerprint,
                "strength": edit.strength,
            }
            for edit in edits
        ],
        "seed": 0,
        "versions": {name: version(name) for name in ("erasure-lightning", "torch")},
    }


def save_composition(edit: Edit, path: Path, data: Mapping[str, Any] | None = None) -> Path:
    """Write a composition, in a folder with the config by which it is measured.

    Args:
        edit: What `compose` returned.
        path: The file; ``edit.safetensors`` is one of a run's folder.
        data: Arguments of `PromptData` for that config; the defaults without.

    Returns:
        The file.

    Raises:
        ErasureError: If it cannot be written; then neither file is left.
    """
    text = _config(edit, data or {})
    edit.metadata["config"] = text
    existed = path.parent.exists()
    try:
        edit.save(path)
        if path.name == EDIT_FILE:
            write_atomically(path.with_name(CONFIG_FILE), text.encode())
    except (ErasureError, OSError):
        path.unlink(missing_ok=True)
        if not existed:
            with suppress(OSError):
                path.parent.rmdir()
        raise
    return path


def _config(edit: Edit, data: Mapping[str, Any]) -> str:
    """The config by which ``erasure test`` measures a composition, as YAML."""
    arguments = dict(edit.metadata["arguments"])
    arguments["concepts"] = [asdict(Concept(**c)) for c in arguments["concepts"]]
    if base := edit.metadata.get("base_edits"):
        arguments["base_edit"] = [entry["path"] for entry in base]
    model = {"class_path": edit.metadata["method"], "init_args": arguments}
    content = {"model": model} | ({"data": dict(data)} if data else {})
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
