"""What adapters of every kind share: a plan that a file can hold, and a place beside a layer."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NoReturn, cast

from torch import Tensor, nn

from erasure_lightning.errors import ErasureError

#: The child of a layer that an adapter is.
CHILD = "adapter"

#: The attribute of a module that holds the handles of its adapter's hooks.
HANDLES = "adapter_handles"


@dataclass(frozen=True)
class Plan:
    """Which adapters stand where; plain values, kept with an edit so that a pipeline can be given
    the same.

    Args:
        kind: One of `adapters.kinds.KINDS`.
        layers: Names of the layers, seen from the module they are put into.
        settings: Arguments of each adapter.
    """

    kind: str
    layers: list[str]
    settings: dict[str, Any] = field(default_factory=dict)


class Adapter(nn.Module, ABC):
    """Changes what a layer says; says nothing of its own before it is trained.

    Args:
        layer: Whose output it changes.
    """

    #: Share of the change that is applied: 0 none, 1 all of it, beyond 1 more.
    strength: float = 1.0

    @abstractmethod
    def __init__(self, layer: nn.Module, **settings: Any) -> None:
        super().__init__()

    @abstractmethod
    def forward(self, x: Tensor, output: Tensor) -> Tensor:
        """The layer's new output, from its input ``(B, N, D)`` and its output ``(B, N, E)``."""

    def is_identity(self) -> bool:
        """Whether every output passes unchanged, as before training; False where that is not known."""
        return False

    @classmethod
    def watch(cls, denoiser: nn.Module, adapters: Sequence["Adapter"], **settings: Any) -> None:
        """Let adapters see what the whole denoiser is asked; by default they do not.

        Args:
            denoiser: What they are put into.
            adapters: All of them.
            settings: Of the plan.
        """


def beside(cls: type[Adapter]) -> Callable[[nn.Module, Plan], None]:
    """Puts an `Adapter` beside each layer, as its child, and leaves the layer's own name and
    weights alone.
    """

    def install(root: nn.Module, plan: Plan) -> None:
        layers = [root.get_submodule(name) for name in plan.layers]
        for layer in layers:
            setattr(layer, CHILD, cls(layer, **plan.settings).to(next(layer.parameters())))
            setattr(layer, HANDLES, [layer.register_forward_hook(_speak)])
        cls.watch(root, [cast(Adapter, getattr(layer, CHILD)) for layer in layers], **plan.settings)
        if hasattr(root, "save_pretrained"):
            cast(Any, root).save_pretrained = partial(refuse_saving, root)

    return install


def adapters_of(root: nn.Module) -> list[Adapter]:
    """The adapters that stand beside layers of a model."""
    return [module for module in root.modules() if isinstance(module, Adapter)]


def take_out(root: nn.Module) -> None:
    """Undo what `beside` did to a model."""
    for module in list(root.modules()):
        for handle in module.__dict__.pop(HANDLES, []):
            handle.remove()
            delattr(module, CHILD)
    vars(root).pop("save_pretrained", None)


def refuse_saving(root: nn.Module, *_: Any, **__: Any) -> NoReturn:
    """Stand in for ``save_pretrained`` of a model with adapters, which diffusers and transformers
    read without them.

    Raises:
        ErasureError: Always.
    """
    kinds = ", ".join(sorted({type(adapter).__name__ for adapter in adapters_of(root)}))
    raise ErasureError(
        f"{type(root).__name__}.save_pretrained needs weights alone; found {kinds} adapters, which"
        " act by prompt or image and cannot be merged: read again, the model would be the unedited"
        " one. Save it without the edit, keep the edit file, and call apply_edit after loading."
    )


def _speak(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    adapter = cast(Adapter, getattr(layer, CHILD))
    changed: Tensor = adapter(inputs[0], output)
    return changed if adapter.strength == 1 else output.lerp(changed, adapter.strength)
