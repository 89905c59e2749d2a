"""Base classes of rules and adapters, their plan in an edit file, and their installation."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NoReturn, cast

from torch import Tensor, nn

from erasure_lightning.errors import ErasureError

#: Name of an adapter as a child module of its layer.
ADAPTER_CHILD = "adapter"

#: Attribute of a module with the handles of its adapter's hooks.
ADAPTER_HANDLES = "adapter_handles"


@dataclass(frozen=True)
class AdapterPlan:
    """Kind, layers and settings of a model's adapters.

    Plain values, saved with an edit, so that the same adapters can be installed in a pipeline.

    Args:
        kind: One of `adapters.kinds.KINDS`.
        layers: Names of the layers, relative to the module that is adapted.
        settings: Arguments of each adapter.
    """

    kind: str
    layers: list[str]
    settings: dict[str, Any] = field(default_factory=dict)


class Rule(nn.Module, ABC):
    """Changes what a layer, or a whole model, returns.

    Args:
        layer: The layer, or the model.
        settings: Settings of the plan.
    """

    #: Share of the change that is applied: 0 none, 1 all of it, beyond 1 more.
    strength: float = 1.0

    @abstractmethod
    def __init__(self, layer: nn.Module, **settings: Any) -> None:
        super().__init__()

    @abstractmethod
    def change(
        self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> Any:
        """The new output at `strength`; equal to the old one, bit for bit, at strength 0.

        Args:
            layer: The layer, or the model, which the rule may call again.
            args: Its positional arguments.
            kwargs: Its other arguments.
            output: What it returned.
        """

    def is_identity(self) -> bool:
        """Whether every output is unchanged, as at initialisation; False where unknown."""
        return False

    @classmethod
    def connect(cls, denoiser: nn.Module, adapters: Sequence["Rule"], **settings: Any) -> None:
        """Connects all rules of a denoiser to its inputs; by default they have no access.

        Args:
            denoiser: The model that they are installed in.
            adapters: All of them.
            settings: Settings of the plan.
        """


class Adapter(Rule):
    """Adds a trainable residual to a layer's output; zero at initialisation."""

    @abstractmethod
    def forward(self, x: Tensor, output: Tensor) -> Tensor:
        """The layer's new output, from its input ``(B, N, D)`` and its output ``(B, N, E)``."""

    def change(
        self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> Any:
        """`forward`, at `strength`."""
        changed: Tensor = self(args[0], output)
        return changed if self.strength == 1 else output.lerp(changed, self.strength)


def hook_installer(cls: type[Rule]) -> Callable[[nn.Module, AdapterPlan], None]:
    """Returns a function that installs a `Rule` beside each layer of a plan.

    The adapter is a child of its layer and acts by a forward hook, so that the layer's own name and
    weights stay as they are. It stands beneath LoRAs, which may be unloaded.
    """

    def install(root: nn.Module, plan: AdapterPlan) -> None:
        layers = [_beneath_loras(root.get_submodule(name)) for name in plan.layers]
        adapters: list[Rule] = []
        for layer in layers:
            adapter = cls(layer, **plan.settings).to(next(layer.parameters()))
            adapters.append(adapter)
            setattr(layer, ADAPTER_CHILD, adapter)
            hook = layer.register_forward_hook(_apply_adapter, with_kwargs=True)
            setattr(layer, ADAPTER_HANDLES, [hook])
        cls.connect(root, adapters, **plan.settings)
        if hasattr(root, "save_pretrained"):
            cast(Any, root).save_pretrained = partial(refuse_saving, root)
        if any(_is_fusible(root, name) for name in plan.layers):
            cast(Any, root).fuse_qkv_projections = partial(_refuse_fusing, root)

    return install


def adapters_of(root: nn.Module) -> list[Rule]:
    """All adapters and other rules that are installed in a model."""
    return [module for module in root.modules() if isinstance(module, Rule)]


def remove_adapters(root: nn.Module) -> None:
    """Undoes the installation of `hook_installer`."""
    for module in list(root.modules()):
        for handle in module.__dict__.pop(ADAPTER_HANDLES, []):
            handle.remove()
            delattr(module, ADAPTER_CHILD)
    for name in ("save_pretrained", "fuse_qkv_projections"):
        vars(root).pop(name, None)


def refuse_saving(root: nn.Module, *_: Any, **__: Any) -> NoReturn:
    """Replaces ``save_pretrained`` of a model whose adapters would be lost when it is loaded again.

    Raises:
        ErasureError: Always.
    """
    raise ErasureError(
        f"{type(root).__name__}.save_pretrained needs weights alone; found {_kinds(root)} adapters,"
        " which act by prompt or image and cannot be merged: read again, the model would be the"
        " unedited one. Save it without the edit, keep the edit file, and call apply_edit after"
        " loading."
    )


def loaded(*modules: nn.Module) -> AbstractContextManager[None]:
    """Context in which parameters that sequential CPU offload leaves on meta are in memory.

    Such offload loads a module's own parameters for its ``forward`` alone.
    """
    offloaded = [
        part
        for module in modules
        for part in module.modules()
        if any(parameter.is_meta for parameter in part.parameters(recurse=False))
    ]
    return _loaded(offloaded) if offloaded else nullcontext()  # which torch.compile traces


@contextmanager
def _loaded(modules: Sequence[nn.Module]) -> Iterator[None]:
    from accelerate.utils import align_module_device

    with ExitStack() as stack:
        for module in modules:
            stack.enter_context(align_module_device(module))
        yield


def _beneath_loras(layer: nn.Module) -> nn.Module:
    """A layer itself, if peft has wrapped it."""
    while hasattr(layer, "base_layer"):
        layer = cast(nn.Module, layer.base_layer)
    return layer


def _is_fusible(root: nn.Module, name: str) -> bool:
    """Whether a layer is one of those in whose place fused projections act."""
    return hasattr(root.get_submodule(name.rpartition(".")[0]), "fuse_projections")


def _refuse_fusing(root: nn.Module) -> NoReturn:
    """Replaces ``fuse_qkv_projections`` of a model with adapters of what it fuses.

    Raises:
        ErasureError: Always.
    """
    raise ErasureError(
        f"{type(root).__name__}.fuse_qkv_projections needs projections without adapters; found"
        f" {_kinds(root)} adapters, which fused projections would pass over. Leave them unfused, or"
        " remove the edit first."
    )


def _kinds(root: nn.Module) -> str:
    return ", ".join(sorted({type(adapter).__name__ for adapter in adapters_of(root)}))


def _apply_adapter(
    layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
) -> Any:
    rule = cast(Rule, getattr(layer, ADAPTER_CHILD))
    with loaded(rule):
        return rule.change(layer, args, kwargs, output)
