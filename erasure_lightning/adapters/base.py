"""What adapters of every kind share: a plan that a file can hold, and a place beside a layer."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from torch import Tensor, nn

#: The child of a layer that an adapter is.
CHILD = "adapter"


@dataclass(frozen=True)
class Plan:
    """Which adapters stand where; plain values, kept with an edit so that a pipeline can be given the same.

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

    @abstractmethod
    def __init__(self, layer: nn.Module, **settings: Any) -> None:
        super().__init__()

    @abstractmethod
    def forward(self, x: Tensor, output: Tensor) -> Tensor:
        """The layer's new output, from its input ``(B, N, D)`` and its output ``(B, N, E)``."""

    @classmethod
    def watch(cls, denoiser: nn.Module, adapters: Sequence["Adapter"], **settings: Any) -> None:
        """Let adapters see what the whole denoiser is asked; by default they do not.

        Args:
            denoiser: What they are put into.
            adapters: All of them.
            settings: Of the plan.
        """


def beside(cls: type[Adapter]) -> Callable[[nn.Module, Plan], None]:
    """Puts an `Adapter` beside each layer, as its child, and leaves the layer's own name and weights alone."""

    def install(root: nn.Module, plan: Plan) -> None:
        layers = [root.get_submodule(name) for name in plan.layers]
        for layer in layers:
            setattr(layer, CHILD, cls(layer, **plan.settings).to(next(layer.parameters())))
            layer.register_forward_hook(_speak)
        cls.watch(root, [cast(Adapter, getattr(layer, CHILD)) for layer in layers], **plan.settings)

    return install


def _speak(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return cast(Tensor, getattr(layer, CHILD)(inputs[0], output))
