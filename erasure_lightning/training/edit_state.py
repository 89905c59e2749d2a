"""States of edits in checkpoints and edit files."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from erasure_lightning.errors import ErasureError

#: Prefix of the edited model's parameters in a module and its checkpoints.
BACKBONE_PREFIX = "backbone."

#: Keys of Lightning's `WeightAveraging` in a checkpoint, for its own state and the trained weights,
#: whose average it puts into ``state_dict``.
_AVERAGING = "averaging_state"
_TRAINED = "current_model_state"

#: Key of the averages of trained parameters.
_AVERAGE = "average"


def reduce_to_edit(checkpoint: dict[str, Any], module: nn.Module, edit: dict[str, Tensor]) -> None:
    """Reduces the weights in a checkpoint to an edit, and to what is trained and averaged.

    Args:
        checkpoint: The checkpoint.
        module: The module that it is of.
        edit: The edit's values by name in the backbone.
    """
    if _AVERAGING in checkpoint:
        trained = [name for name, p in module.named_parameters() if p.requires_grad]
        checkpoint[_AVERAGE] = {name: checkpoint["state_dict"][name] for name in trained}
        checkpoint[_TRAINED] = {name: checkpoint[_TRAINED][name] for name in trained}
    checkpoint["state_dict"] = {BACKBONE_PREFIX + name: value for name, value in edit.items()}


def complete_weights(
    checkpoint: dict[str, Any], module: nn.Module, edit: dict[str, Tensor]
) -> None:
    """Puts an edit into a checkpoint; with an average also all weights, which Lightning loads.

    Args:
        checkpoint: The checkpoint, as `reduce_to_edit` left it.
        module: The module that it is loaded into.
        edit: The edit's values by the module's names.
    """
    checkpoint["state_dict"] = edit
    if _AVERAGING in checkpoint:
        whole = module.state_dict() | edit
        checkpoint["state_dict"] = whole | checkpoint[_AVERAGE]
        checkpoint[_TRAINED] = whole | checkpoint[_TRAINED]


def backbone_state(
    state: dict[str, Tensor], names: dict[str, str], parameters: Mapping[str, Tensor], owner: str
) -> dict[str, Tensor]:
    """An edit's state by the names of a module.

    Args:
        state: Values by the names of a module, or of an edit file's components.
        names: The module's names, by those of the edit file.
        parameters: What is edited, by name in the backbone.
        owner: Name of the method in messages.

    Raises:
        ErasureError: If the state is one of other parameters, or a value has another shape.
    """
    renamed = {names.get(name, name): value for name, value in state.items()}
    if different := sorted(renamed.keys() ^ set(names.values())):
        raise ErasureError(
            f"{owner} edits {len(names)} parameters as configured; the checkpoint has"
            f" {len(renamed)}. They differ in {len(different)}, {different[0]} first. Use the"
            " checkpoint's config."
        )
    for name, parameter in parameters.items():
        value = renamed[BACKBONE_PREFIX + name]
        if value.shape != parameter.shape:
            raise ErasureError(
                f"{name} needs values of shape {tuple(parameter.shape)}; the checkpoint has"
                f" {tuple(value.shape)}. Use its config and its base model."
            )
    return renamed


def check_base_model(metadata: dict[str, Any], name: str, own: str, rounded: str) -> None:
    """Check the base model of an edit.

    Args:
        metadata: Metadata of the edit.
        name: Name of the base model.
        own: Its fingerprint.
        rounded: Its fingerprint in bfloat16.

    Raises:
        ErasureError: If the edit has another.
    """
    base = metadata.get("backbone_fingerprint")
    if base not in (None, own, rounded) and metadata.get("backbone_bfloat16") != own:
        raise ErasureError(
            f"The checkpoint edits a model with fingerprint {base}; {name} has {own}. Give the base"
            f" model of the checkpoint, {metadata.get('backbone', 'another one')}, with the weights"
            " that it had then."
        )
