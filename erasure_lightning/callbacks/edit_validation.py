"""Stops a run that went wrong, and refuses an edit that is none."""

from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from erasure_lightning.distributed.fsdp import full_tensor
from erasure_lightning.errors import ErasureError
from erasure_lightning.training.base import ErasureModule


class EditValidation(Callback):
    """Stops when the loss is no number, and when the finished edit is no number or changed nothing."""

    def __init__(self) -> None:
        self._added: dict[str, Tensor] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember what adapters were when training began."""
        if isinstance(pl_module, ErasureModule) and not self._added:
            old = dict(pl_module.original.named_parameters())
            new = {n: p for n, p in pl_module.editable().items() if n not in old}
            self._added = {
                name: parameter.detach().cpu().clone() for name, parameter in new.items()
            }

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look at the loss.

        Raises:
            ErasureError: If it is NaN or infinite.
        """
        loss = outputs["loss"] if isinstance(outputs, dict) and "loss" in outputs else outputs
        if isinstance(loss, Tensor) and not loss.isfinite().all():
            raise ErasureError(
                f"The loss became {loss.item()} at step {trainer.global_step}. {_advice(pl_module)}"
            )

    def state_dict(self) -> dict[str, Any]:
        """What adapters were, for a resumed run, whose own have moved."""
        return {"added": self._added}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it up."""
        self._added = state_dict["added"]

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the edit.

        Raises:
            ErasureError: If it holds NaN or infinity, or equals the original.
        """
        if isinstance(pl_module, ErasureModule):
            check_edit(pl_module, self._added)


def check_edit(module: ErasureModule, added: dict[str, Tensor]) -> None:
    """Raise unless the module's edit is one.

    Args:
        module: The module.
        added: What the parameters that the original lacks (adapters) were when training began.

    Raises:
        ErasureError: If it holds NaN or infinity, or equals the original.
    """
    editable, bad, moved = module.editable(), [], False
    before = added | dict(module.original.named_parameters())
    for name, parameter in editable.items():  # one by one: split weights are whole for a moment
        value = full_tensor(parameter)
        bad += [name] * (not value.isfinite().all())
        moved = moved or not torch.equal(
            value, full_tensor(before[name.replace(".base_layer.", ".")])
        )  # alike on all ranks
    if bad:
        raise ErasureError(
            f"The edit holds NaN or infinity in {len(bad)} of {len(editable)} parameters, {bad[0]}"
            f" first; nothing was written. {_advice(module)}"
        )
    if not moved:
        raise ErasureError(
            f"{type(module).__name__} changed none of its {len(editable)} parameters; nothing was"
            " written. Give it more steps (--trainer.max_steps) or a higher learning rate, or look"
            " at its concepts."
        )


def _advice(module: LightningModule) -> str:
    lr = getattr(module, "lr", None)
    return (
        f"Try a lower learning rate: --model.lr {lr / 10:g} instead of {lr:g}."
        if lr
        else "Look at its settings."
    )
