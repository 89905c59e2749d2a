"""Report of an edit as text."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from erasure_lightning.edits.base_edits import titles
from erasure_lightning.edits.changes import components_of
from erasure_lightning.edits.composition import Overlap
from erasure_lightning.edits.edit import edit_title
from erasure_lightning.edits.format import base_title
from erasure_lightning.edits.stack import AppliedEdit


def describe_edit(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, Any], records: Mapping[str, AppliedEdit]
) -> str:
    """Lines about an edit: method, concepts, base, and the change of each component.

    Args:
        tensors: Edited values by component and name.
        metadata: The edit's metadata.
        records: What its application recorded, by component; empty of an edit in no pipeline.
    """
    lines = [edit_title(metadata)]
    for concept in metadata.get("concepts", []):
        anchor = concept["anchor"] or "no prompt"
        lines.append(f"  {concept['name']} ({concept['kind']}) -> {anchor}")
    lines.append(f"  base model: {base_title(metadata) or 'unknown'}")
    if base := metadata.get("base_edits"):
        lines.append(f"  based on: {titles(base)}")
    for name in components_of(tensors):
        values = [value for key, value in tensors.items() if key.partition(".")[0] == name]
        count = sum(value.numel() for value in values)
        moved = _distance(records.get(name))
        lines.append(f"  {name}: {len(values)} tensors, {count:,} values{moved}")
    if overlap := metadata.get("overlap"):
        lines += [f"  {Overlap(**entry)}" for entry in overlap]
    elif "composed" in metadata:
        lines.append("  no tensor is changed by two of the composed edits")
    return "\n".join(lines)


def _distance(record: AppliedEdit | None) -> str:
    """Change of a component's weights, where the former ones are known."""
    if record is None or "before" not in record:
        return ""
    before = torch.cat([value.flatten().float() for value in record["before"].values()])
    after = torch.cat([record["after"][n].flatten().to(before) for n in record["before"]])
    return f", moved by {(after - before).norm() / before.norm():.2%} of their norm"
