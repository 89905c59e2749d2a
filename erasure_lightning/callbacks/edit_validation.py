"""`EditValidation`: raises for a non-finite loss or edit, and for an edit without a change."""

from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from erasure_lightning.distributed.fsdp import full_tensor
from erasure_lightning.errors import ErasureError
from erasure_lightning.training.base import ErasureModule


class EditValidation(Callback):
    """Raises if the loss or the finished edit is not finite, or if the edit equals the original."""

    def __init__(self) -> None:
        self._initial_adapters: dict[str, Tensor] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget the fit before; a checkpoint's state is restored after this hook."""
        if stage == "fit":
            self._initial_adapters = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Copy the adapters' initial parameters."""
        if isinstance(pl_module, ErasureModule) and not self._initial_adapters:
            original = dict(pl_module.original.named_parameters())
            self._initial_adapters = {
                name: parameter.detach().cpu().clone()
                for name, parameter in pl_module.editable().items()
                # The weights beneath adapters are the original's until training ends.
                if name.replace(".base_layer.", ".") not in original
            }

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Check the loss.

        Raises:
            ErasureError: If it is NaN or infinite.
        """
        loss = outputs["loss"] if isinstance(outputs, dict) and "loss" in outputs else outputs
        if isinstance(loss, Tensor) and not loss.isfinite().all():
            raise ErasureError(
                f"The loss became {loss.item()} at step {trainer.global_step}. {_advice(pl_module)}"
            )

    def state_dict(self) -> dict[str, Any]:
        """The initial parameters, since those of a resumed run are trained already."""
        return {"added": self._initial_adapters}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the initial parameters."""
        self._initial_adapters = state_dict["added"]

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the edit.

        Raises:
            ErasureError: If it holds NaN or infinity, or equals the original.
        """
        if isinstance(pl_module, ErasureModule):
            check_edit(pl_module, self._initial_adapters)


def check_edit(module: ErasureModule, initial_adapters: dict[str, Tensor]) -> None:
    """Raise if the edit is non-finite or equals the original.

    Args:
        module: The module with the edit.
        initial_adapters: Initial values of the parameters that the original lacks, by name.

    Raises:
        ErasureError: If it holds NaN or infinity, or equals the original.
    """
    editable = module.editable()
    initial = initial_adapters | dict(module.original.named_parameters())
    not_finite: list[str] = []
    changed = False
    # One by one: sharded weights are gathered whole for each comparison, on all ranks.
    for name, parameter in editable.items():
        value = full_tensor(parameter)
        if not value.isfinite().all():
            not_finite.append(name)
        if not changed:
            changed = not torch.equal(
                value, full_tensor(initial[name.replace(".base_layer.", ".")])
            )
    if not_finite:
        raise ErasureError(
            f"The edit holds NaN or infinity in {len(not_finite)} of {len(editable)} parameters,"
            f" {not_finite[0]} first; no file was written. {_advice(module)}"
        )
    if not changed:
        raise ErasureError(
            f"{type(module).__name__} changed none of its {len(editable)} parameters; no file was"
            " written. Give it more steps (steps of erase, max_steps of a trainer) or a higher"
            " learning rate, or check its concepts."
        )


def _advice(module: LightningModule) -> str:
    """What to change first; float16 weights before the learning rate."""
    lr = getattr(module, "lr", None)
    lower = f"a lower learning rate: lr {lr / 10:g} in place of {lr:g}." if lr else ""
    if isinstance(module, ErasureModule) and any(
        parameter.dtype == torch.float16 for parameter in module.trainable().values()
    ):
        precise = (
            "Its weights are trained in float16, in which gradients and an optimizer's steps become"
            " 0 or infinite: leave precision 16-true out, or give base_dtype bfloat16 to save"
            " memory."
        )
        return f"{precise} If that does not help, try {lower}" if lower else precise
    return f"Try {lower}" if lower else "Look at its settings."
