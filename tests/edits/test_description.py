"""How far an edit moves a component, in its description."""

import torch

from erasure_lightning.edits.description import describe_edit
from erasure_lightning.edits.edit import StoredEdit


def test_the_distance_is_relative_to_the_weights_before():
    weights = {"a": torch.tensor([3.0]), "b": torch.tensor([4.0])}
    moved = {"a": torch.tensor([3.0]), "b": torch.tensor([4.5])}
    tensors = {f"unet.{name}": value for name, value in moved.items()}
    edit = StoredEdit(tensors, {"method": "package.UCE", "concepts": []})
    text = describe_edit(edit, {"unet": {"before": weights, "after": moved}})
    assert "unet: 2 tensors, 2 values, moved by 10.00% of their norm" in text
