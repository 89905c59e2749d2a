"""Report of an edit as text."""

from collections.abc import Mapping

import torch

from erasure_lightning.edits.base_edits import titles
from erasure_lightning.edits.composition import Overlap
from erasure_lightning.edits.edit import StoredEdit
from erasure_lightning.edits.format import base_title
from erasure_lightning.edits.stack import AppliedEdit


def describe_edit(edit: StoredEdit, records: Mapping[str, AppliedEdit]) -> str:
    """Lines about an edit: method, concepts, base, and the change of each component.

    Args:
        edit: The edit.
        records: What its application recorded, by component; empty of an edit in no pipeline.
    """
    metadata = edit.metadata
    lines = [edit.title]
    for concept in metadata.get("concepts", []):
        anchor = concept["anchor"] or "no prompt"
        lines.append(f"  {concept['name']} ({concept['kind']}) -> {anchor}")
    lines.append(f"  base model: {base_title(metadata) or 'unknown'}")
    if edit.base_edits:
        lines.append(f"  based on: {titles(edit.base_edits)}")
    for name in edit.components:
        values = edit.values_of(name).values()
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
