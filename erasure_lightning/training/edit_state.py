"""States of edits in checkpoints and edit files."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from erasure_lightning.errors import ErasureError

#: Prefix of the edited model's parameters in a module and its checkpoints.
BACKBONE_PREFIX = "backbone."


def backbone_state(
    state: dict[str, Tensor], names: dict[str, str], owner: str
) -> dict[str, Tensor]:
    """An edit's state by the names of a module.

    Args:
        state: Values by the names of a module, or of an edit file's components.
        names: The module's names, by those of the edit file.
        owner: Name of the method in messages.

    Raises:
        ErasureError: If the state is one of other parameters.
    """
    renamed = {names.get(name, name): value for name, value in state.items()}
    if different := sorted(renamed.keys() ^ set(names.values())):
        raise ErasureError(
            f"{owner} edits {len(names)} parameters as configured; the checkpoint has"
            f" {len(renamed)}. They differ in {len(different)}, {different[0]} first. Use the"
            " config the checkpoint was made with."
        )
    return renamed


def check_shapes(state: Mapping[str, Tensor], shapes: Mapping[str, torch.Size]) -> None:
    """Check that an edit's values have the shapes of what they are loaded into.

    Args:
        state: Values by the names of a module.
        shapes: Shapes of the module's parameters.

    Raises:
        ErasureError: If one has another shape.
    """
    for name, value in state.items():
        if value.shape != shapes[name]:
            raise ErasureError(
                f"{name.removeprefix(BACKBONE_PREFIX)} needs values of shape"
                f" {tuple(shapes[name])}; the checkpoint has {tuple(value.shape)}. Use the config"
                " and the base model that it was made with."
            )


def check_base_model(metadata: dict[str, Any], name: str, own: str, rounded: str) -> None:
    """Check that an edit was made on a base model.

    Args:
        metadata: Metadata of the edit.
        name: Name of the base model.
        own: Its fingerprint.
        rounded: Its fingerprint in bfloat16.

    Raises:
        ErasureError: If it was made on another.
    """
    base = metadata.get("backbone_fingerprint")
    if base not in (None, own, rounded) and metadata.get("backbone_bfloat16") != own:
        raise ErasureError(
            f"The checkpoint edits a model with fingerprint {base}; {name} has {own}. Give the base"
            f" model of the checkpoint, {metadata.get('backbone', 'another one')}, with the weights"
            " that it had then."
        )
