"""States of edits in checkpoints and edit files."""

from typing import Any

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
            f"The checkpoint edits a model with fingerprint {base}; {name} has {own}."
        )
