"""Base classes of methods that train adapters, left beside the weights or merged into them."""

import re
from abc import abstractmethod
from contextlib import AbstractContextManager
from dataclasses import asdict
from functools import cached_property
from typing import Any

import torch
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
from erasure_lightning.adapters.per_concept import ConceptAdapters
from erasure_lightning.backbones.interface import Part
from erasure_lightning.backbones.precision import promote_to_float32
from erasure_lightning.checks import require
from erasure_lightning.errors import ErasureError
from erasure_lightning.training.base import ErasureModule
from erasure_lightning.training.edit_state import BACKBONE_PREFIX
from erasure_lightning.training.gradient import GradientErasure
from erasure_lightning.training.latent_sources import NoisyBatch


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
        """What an edit was made from, with the plan of the adapters to install in a pipeline."""
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
            any other; else the edit has both apart.
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
        is_set = {"lora_layers": lora_layers is not None, "lora_init": lora_init != "uniform"}
        if rank is not None:
            require(type(self).__name__, at_least=1, rank=rank)
        elif unused := [name for name, used in is_set.items() if used]:
            raise ErasureError(
                f"{type(self).__name__} with {unused[0]} needs a rank; found none. Set rank 4,"
                f" say, or leave {unused[0]} out."
            )
        try:
            re.compile(lora_layers or "")
        except re.error as error:
            raise ErasureError(
                f"{type(self).__name__} needs a regular expression as lora_layers; found"
                f" {lora_layers!r}: {error}."
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

    def editable(self) -> dict[str, nn.Parameter]:
        """The part; or the adapters' parameters and the weights they wrap, once merged these."""
        if self.rank is None:
            return self.backbone.denoiser_parameters(self.train_part)
        layers = [f"denoiser.{layer}" for layer in self._plan.layers]
        return {
            name: parameter
            for layer in layers
            for name, parameter in self.backbone.get_submodule(layer).named_parameters(layer)
            if not name.endswith(".bias")
        }

    def description(self) -> dict[str, Any]:
        """What an edit was made from, with a plan of adapters where they are apart."""
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


class PerConceptErasure(GradientErasure):
    """Base of methods that train adapters for each concept and fuse them into the text layers.

    The adapters are not part of the backbone, so that each row of a batch passes those of its own
    concept. An edit is weights at any time: a checkpoint has the fusion of the adapters as they
    are. Adapters of concepts that a batch lacks get no gradient.

    Args:
        rank: Rank of each adapter, at least 1.
        kwargs: Arguments of `GradientErasure`.

    Raises:
        ErasureError: If the rank is below 1.
    """

    has_unused = True
    finalizes_edit = True

    def __init__(self, *, rank: int = 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        require(type(self).__name__, at_least=1, rank=rank)
        self.rank = rank

    @abstractmethod
    def fused(self) -> Tensor:
        """The fused weights of all text layers, stacked, ``(out, D)``."""

    def adapt(self) -> None:
        """Creates the adapters, apart from the backbone."""
        layers = self.backbone.text_layers().values()
        self.adapters = ConceptAdapters(layers, len(self.concepts), self.rank)

    def trainable(self) -> dict[str, nn.Parameter]:
        """The adapters' parameters alone."""
        return {
            f"adapters.{name}": parameter for name, parameter in self.adapters.named_parameters()
        }

    def adapted(self, batch: NoisyBatch) -> AbstractContextManager[None]:
        """Context in which each row of a batch passes the adapters of its concept."""
        return self.adapters.beside(self.backbone.text_layers().values(), batch.indices)

    @torch.no_grad()
    def write_layers(self, weights: Tensor) -> None:
        """Writes stacked weights ``(out, D)`` to the text layers."""
        self.write(self._by_name(weights))

    def _by_name(self, weights: Tensor) -> dict[str, Tensor]:
        layers = weights.to(self.backbone.dtype).split_with_sizes(self.adapters.widths)
        names = [f"{name}.weight" for name in self.backbone.text_layers()]
        return dict(zip(names, layers, strict=True))

    def on_train_end(self) -> None:
        """Fuses the adapters."""
        self.write_layers(self.fused())

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Saves the adapters beside the edit that they fuse to."""
        super().on_save_checkpoint(checkpoint)
        fused = self._by_name(self.fused()).items()
        checkpoint["state_dict"] |= {BACKBONE_PREFIX + name: weight for name, weight in fused}
        checkpoint["adapters"] = dict(self.adapters.state_dict())

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restores the adapters; a finished edit has none."""
        super().on_load_checkpoint(checkpoint)
        self.adapters.load_state_dict(checkpoint.get("adapters", {}), strict=False)
