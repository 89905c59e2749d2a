"""Kinds of adapters, ours and those of other packages, and their installation in a model."""

from collections.abc import Callable
from importlib.metadata import entry_points

from torch import nn

from erasure_lightning.adapters.base import ADAPTER_CHILD, AdapterPlan, Rule, hook_installer
from erasure_lightning.adapters.eraser import Eraser
from erasure_lightning.adapters.gated_low_rank import GatedLowRank
from erasure_lightning.adapters.lora import add_lora
from erasure_lightning.adapters.safety_guidance import SafetyGuidance
from erasure_lightning.adapters.semi_permeable import SemiPermeable
from erasure_lightning.adapters.subspace_projection import SubspaceProjection
from erasure_lightning.adapters.value_decomposition import ValueDecomposition
from erasure_lightning.discovery import cause_of, package_of
from erasure_lightning.errors import ErasureError

#: Installer of each kind of ours; a file names a kind and no class, and so decides no import.
KINDS: dict[str, Callable[[nn.Module, AdapterPlan], None]] = {
    "lora": add_lora,
    "spm": hook_installer(SemiPermeable),
    "eraser": hook_installer(Eraser),
    "safety-guidance": hook_installer(SafetyGuidance),
    "subspace-projection": hook_installer(SubspaceProjection),
    "value-decomposition": hook_installer(ValueDecomposition),
    "gloce": hook_installer(GatedLowRank),
}

#: Kinds that change the last states of a text encoder, which pipelines with a second one pass over:
#: they read the layer before the last, or the pooled state.
OF_LAST_STATES = frozenset({"subspace-projection"})

#: Entry-point group of other packages' rules, by kind. `registry`, which reads the other groups, is
#: a layer above this module.
_GROUP = "erasure_lightning.adapters"


def install(root: nn.Module, plan: AdapterPlan) -> None:
    """Install adapters in a model.

    Args:
        root: The model.
        plan: Which, and where.

    Raises:
        ErasureError: If the kind is unknown or cannot be loaded, or a layer is missing.
    """
    installer = KINDS.get(plan.kind) or _plugin_installer(plan.kind)
    present = {name for name, _ in root.named_modules()}
    if missing := [name for name in plan.layers if name not in present]:
        raise ErasureError(
            f"The adapters need {len(plan.layers)} layers of {type(root).__name__}; found"
            f" {len(missing)} missing, {missing[0]} first."
        )
    installer(root, plan)


def adapter_parameters(root: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters of the adapters in a model, of any kind, by name."""
    marks = (f".{ADAPTER_CHILD}.", ".lora_")
    return {name: p for name, p in root.named_parameters() if any(mark in name for mark in marks)}


def _plugin_installer(kind: str) -> Callable[[nn.Module, AdapterPlan], None]:
    """The installer of another package's adapters; its code is imported here."""
    announced = entry_points(group=_GROUP)
    entries = list(announced.select(name=kind))
    if not entries:
        known = ", ".join(sorted({*KINDS, *announced.names}))
        raise ErasureError(
            f"The edit needs adapters of kind {kind!r}; known are {known}."
            " Install the package that made the edit."
        )
    if len(entries) > 1:
        packages = " and ".join(sorted(f"{package_of(e)} ({e.value})" for e in entries))
        raise ErasureError(f"The adapter name {kind!r} is claimed by {packages}. Uninstall one.")
    try:
        adapter = entries[0].load()
        if not (isinstance(adapter, type) and issubclass(adapter, Rule)):
            raise TypeError(f"expected a subclass of Rule, found {adapter!r}")
    except (Exception, SystemExit) as error:  # a plugin's own code runs here, and may even exit
        raise ErasureError(
            f"The adapter {kind} could not be loaded from {package_of(entries[0])}"
            f" ({entries[0].value}): {cause_of(error)}. Mend or uninstall that package."
        ) from error
    return hook_installer(adapter)
