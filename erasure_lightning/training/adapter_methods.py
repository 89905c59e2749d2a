"""Base classes of methods that train adapters, left beside the weights or merged into them."""

import re
from abc import abstractmethod
from dataclasses import asdict
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from erasure_lightning.adapters.base import ADAPTER_CHILD, AdapterPlan
from erasure_lightning.adapters.kinds import adapter_parameters, install
from erasure_lightning.adapters.lora import (
    LoraInit,
    draw_gaussian,
    merge_lora,
    remove_lora,
    unshare_base_layers,
)
from erasure_lightning.backbones.interface import Part
from erasure_lightning.backbones.precision import promote_to_float32
from erasure_lightning.checks import require
from erasure_lightning.errors import ErasureError
from erasure_lightning.training.base import ErasureModule
from erasure_lightning.training.edit_state import BACKBONE_PREFIX
from erasure_lightning.training.gradient import GradientErasure


class AdapterEdit(ErasureModule):
    """Base of methods whose edit is small modules beside the denoiser's layers."""

    @abstractmethod
    def plan(self) -> AdapterPlan:
        """Kind, layers and settings of the adapters; called once, before they are installed."""

    @cached_property
    def _plan(self) -> AdapterPlan:
        return self.plan()

    def modified(self) -> list[str]:
        """Names of the adapter modules."""
        return [f"denoiser.{layer}.{ADAPTER_CHILD}" for layer in self._plan.layers]

    def adapt(self) -> None:
        """Installs the adapters."""
        install(self.backbone.denoiser, self._plan)

    def editable(self) -> dict[str, nn.Parameter]:
        """The adapters' parameters."""
        return adapter_parameters(self.backbone)

    def description(self) -> dict[str, Any]:
        """Metadata of an edit, with the plan of the adapters to install in a pipeline."""
        component = self.backbone.components["denoiser"]
        return super().description() | {"adapters": {component: asdict(self._plan)}}


class AdapterErasure(AdapterEdit, GradientErasure):
    """Base of methods that train small modules beside the denoiser's layers."""


class PartErasure(AdapterErasure):
    """Base of methods that train a part of the denoiser: its weights, or low-rank adapters of them.

    Args:
        train: Which part: ``x`` its cross-attention, or joint attention, ``x-strict`` keys and
            values of the text alone, ``u`` all but ``x``, ``all``; ``entry`` what reads the prompt
            alone; ``pixels`` self-attention and queries, where attention is apart.
        rank: Rank of an adapter beside each linear layer of the part, at least 1; without a rank
            the weights themselves are trained.
        lora_layers: Regular expression that is searched in the names of these layers; those without
            a match have no adapter. By default all have one.
        lora_init: How an adapter's first factor begins (`LoraInit`); at the same rate ``gaussian``
            ones move the weights further: by 12 times at rank 4 and 768 inputs.
        merge: Add the adapters to the weights when training ends, so that the edit is weights like
            any other, and as large; else the edit is the adapters alone.
        kwargs: Arguments of `GradientErasure`.

    Raises:
        ErasureError: If the rank is below 1, or missing where needed, or layers are no expression.
    """

    def __init__(
        self,
        *,
        train: Part = "x",
        rank: int | None = None,
        lora_layers: str | None = None,
        lora_init: LoraInit = "uniform",
        merge: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        owner = type(self).__name__
        is_set = {"lora_layers": lora_layers is not None, "lora_init": lora_init != "uniform"}
        if rank is not None:
            require(owner, at_least=1, rank=rank)
        elif unused := [name for name, used in is_set.items() if used]:
            raise ErasureError(
                f"{owner} with {unused[0]} needs a rank; found none. Set rank 4, say, or leave"
                f" {unused[0]} out."
            )
        try:
            re.compile(lora_layers or "")
        except re.error as error:
            raise ErasureError(
                f"{owner} needs a regular expression as lora_layers; found {lora_layers!r}:"
                f" {error}."
            ) from error
        self.train_part: Part = train
        self.rank = rank
        self.lora_layers = lora_layers
        self.lora_init: LoraInit = lora_init
        self.merge = merge
        self._merged = False

    def plan(self) -> AdapterPlan:
        """One adapter for each linear layer of the part; none without a rank.

        Raises:
            ErasureError: If `lora_layers` matches none of them.
        """
        if self.rank is None:
            return AdapterPlan("lora", [])
        part = self.backbone.denoiser_parameters(self.train_part)
        linear = [
            name
            for name, module in self.backbone.denoiser.named_modules()
            if isinstance(module, nn.Linear) and f"denoiser.{name}.weight" in part
        ]
        if not (layers := [name for name in linear if re.search(self.lora_layers or "", name)]):
            raise ErasureError(
                f"{type(self).__name__} needs a linear layer that lora_layers matches; found"
                f" {self.lora_layers!r} and {len(linear)} layers, {linear[0]} first."
            )
        return AdapterPlan("lora", layers, {"rank": self.rank})

    def modified(self) -> list[str]:
        """What is `editable`; with adapters the layers, which are wrapped and remain shared."""
        wrapped = [name.removesuffix(f".{ADAPTER_CHILD}") for name in super().modified()]
        return [*self.editable()] if self.rank is None else wrapped

    def in_float32(self) -> dict[str, nn.Parameter]:
        """What is trained: the weights beneath adapters change when training ends, if ever."""
        return self.trainable()

    def edit_values(self) -> dict[str, Tensor]:
        """Full values of everything `editable`, on the CPU, in float32."""
        values = super().edit_values()
        promote_to_float32(values.values())
        return values

    def adapt(self) -> None:
        """Installs the adapters, if there are any."""
        if self.rank is not None:
            super().adapt()
            if self.lora_init == "gaussian":
                draw_gaussian(self.backbone.denoiser, self._plan)

    def base_weight_name(self, name: str) -> str:
        """Name of a layer's own weight while an adapter wraps the layer."""
        layer = name.removesuffix(".weight").removeprefix("denoiser.")
        return f"denoiser.{layer}.base_layer.weight" if layer in self._plan.layers else name

    def trainable(self) -> dict[str, nn.Parameter]:
        """The adapters' parameters alone; without adapters all of `editable`."""
        return self.editable() if self.rank is None else adapter_parameters(self.backbone)

    def changes_weights(self) -> bool:
        """Whether the weights beneath adapters change, by merging or otherwise."""
        return self.merge

    def editable(self) -> dict[str, nn.Parameter]:
        """The part; or the adapters' parameters, with the weights they wrap if these change."""
        if self.rank is None:
            return self.backbone.denoiser_parameters(self.train_part)
        if not self.changes_weights():
            return adapter_parameters(self.backbone)
        layers = [f"denoiser.{layer}" for layer in self._plan.layers]
        return {
            name: parameter
            for layer in layers
            for name, parameter in self.backbone.get_submodule(layer).named_parameters(layer)
            if not name.endswith(".bias")
        }

    def description(self) -> dict[str, Any]:
        """Metadata of an edit, with a plan of adapters where they are apart."""
        description = super().description()
        if self.rank is None or self._merged:
            del description["adapters"]
        return description

    def configure_optimizers(self) -> Any:
        """The optimizer, and the schedule of its learning rate.

        Raises:
            ErasureError: If the adapters were merged at the end of another fit.
        """
        if self._merged:
            raise ErasureError(
                f"{type(self).__name__} needs adapters to train; found them merged, as a fit has"
                " ended. Train a new one on this edit as base_edit, or set merge false."
            )
        return super().configure_optimizers()

    def on_train_end(self) -> None:
        """Merges the adapters."""
        if self.rank is not None and self.merge:
            merge_lora(self.backbone.denoiser)
            self._merged = True

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Removes the adapters before merged weights are loaded."""
        names = [name for name in checkpoint["state_dict"] if name.startswith(BACKBONE_PREFIX)]
        merged = self.rank is not None and not any(".lora_" in name for name in names)
        if merged and not self._merged:
            unshare_base_layers(self.backbone.denoiser)
            remove_lora(self.backbone.denoiser)
            self._merged = True
        super().on_load_checkpoint(checkpoint)


class LoraErasure(PartErasure):
    """Base of methods that always train adapters, by default of the text's keys and values.

    Args:
        train: As in `PartErasure`.
        rank: Rank of each adapter, at least 1 (1 as in MACE).
        kwargs: Arguments of `PartErasure`.
    """

    def __init__(self, *, train: Part = "x-strict", rank: int = 1, **kwargs: Any) -> None:
        super().__init__(train=train, rank=rank, **kwargs)
