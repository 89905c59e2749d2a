"""Which adapters there are, and how they get into a model."""

from collections.abc import Callable

from torch import nn

from erasure_lightning.adapters.base import ADAPTER_CHILD, AdapterPlan, hook_installer
from erasure_lightning.adapters.eraser import Eraser
from erasure_lightning.adapters.lora import add_lora
from erasure_lightning.adapters.semi_permeable import SemiPermeable
from erasure_lightning.errors import ErasureError

#: How each kind is put in; a file says the kind, so that reading it never imports what it names.
KINDS: dict[str, Callable[[nn.Module, AdapterPlan], None]] = {
    "lora": add_lora,
    "spm": hook_installer(SemiPermeable),
    "eraser": hook_installer(Eraser),
}


def install(root: nn.Module, plan: AdapterPlan) -> None:
    """Put adapters into a model.

    Args:
        root: The model.
        plan: Which, and where.

    Raises:
        ErasureError: If the kind is unknown, or a layer is not there.
    """
    if plan.kind not in KINDS:
        raise ErasureError(
            f"The edit needs adapters of kind {plan.kind!r}; known are {', '.join(sorted(KINDS))}."
        )
    present = {name for name, _ in root.named_modules()}
    if missing := [name for name in plan.layers if name not in present]:
        raise ErasureError(
            f"The adapters need {len(plan.layers)} layers of {type(root).__name__}; found"
            f" {len(missing)} missing, {missing[0]} first."
        )
    KINDS[plan.kind](root, plan)


def adapter_parameters(root: nn.Module) -> dict[str, nn.Parameter]:
    """What adapters of any kind compute with, by name."""
    marks = (f".{ADAPTER_CHILD}.", ".lora_")
    return {name: p for name, p in root.named_parameters() if any(mark in name for mark in marks)}
