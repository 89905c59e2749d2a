"""Methods that train adapters and leave the denoiser's own weights as they are, or merge them in at
the end.
"""

from abc import abstractmethod
from contextlib import AbstractContextManager
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from erasure_lightning.adapters.base import CHILD, Plan
from erasure_lightning.adapters.kinds import adapter_parameters, install
from erasure_lightning.adapters.lora import merge_lora, remove_lora
from erasure_lightning.adapters.per_concept import ConceptAdapters
from erasure_lightning.training.base import BACKBONE_PREFIX
from erasure_lightning.training.gradient import GradientErasure
from erasure_lightning.training.latent_sources import NoisyBatch


class AdapterErasure(GradientErasure):
    """A method that trains small modules beside the denoiser's layers."""

    @abstractmethod
    def plan(self) -> Plan:
        """Which adapters, and beside which layers of the denoiser; asked once, before they are
        there.
        """

    def modified(self) -> list[str]:
        """The places of the adapters."""
        self._plan = self.plan()
        return [f"denoiser.{layer}.{CHILD}" for layer in self._plan.layers]

    def adapt(self) -> None:
        """Put the adapters in."""
        install(self.backbone.denoiser, self._plan)

    def editable(self) -> dict[str, nn.Parameter]:
        """The adapters."""
        return adapter_parameters(self.backbone)

    def description(self) -> dict[str, Any]:
        """What an edit was made from, and the adapters a pipeline must be given."""
        component = self.backbone.components["denoiser"]
        return super().description() | {"adapters": {component: asdict(self._plan)}}


class LoraErasure(AdapterErasure):
    """A method that trains low-rank adapters of the text layers.

    Args:
        rank: Of each adapter, at least 1 (1 as in MACE).
        merge: Add the adapters to the weights when training ends, so that the edit is weights like
            any other; else the edit holds them apart.
        kwargs: Arguments of every gradient method.
    """

    def __init__(self, *, rank: int = 1, merge: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.rank = rank
        self.merge = merge
        self._merged = False

    def plan(self) -> Plan:
        """One adapter for each text layer."""
        layers = [name.removeprefix("denoiser.") for name in self.backbone.text_layers()]
        return Plan("lora", layers, {"rank": self.rank})

    def modified(self) -> list[str]:
        """The text layers: their weights, and they themselves, which are wrapped."""
        names = [place.removesuffix(f".{CHILD}") for place in super().modified()]
        return [f"{name}.weight" for name in names] + names

    def beneath(self, name: str) -> str:
        """Name of a layer's own weight while an adapter wraps the layer."""
        layer = name.removesuffix(".weight").removeprefix("denoiser.")
        return f"denoiser.{layer}.base_layer.weight" if layer in self._plan.layers else name

    def trainable(self) -> dict[str, nn.Parameter]:
        """The adapters alone."""
        return adapter_parameters(self.backbone)

    def editable(self) -> dict[str, nn.Parameter]:
        """The adapters and the weights beneath them; once merged, the weights."""
        layers = (f"denoiser.{name}." for name in self._plan.layers)
        named = dict(self.backbone.named_parameters())
        return {
            n: p
            for prefix in layers
            for n, p in named.items()
            if n.startswith(prefix) and not n.endswith(".bias")
        }

    def description(self) -> dict[str, Any]:
        """What an edit was made from; once merged, it needs no adapters."""
        found = super().description()
        return {k: v for k, v in found.items() if k != "adapters"} if self._merged else found

    def on_train_end(self) -> None:
        """Merge."""
        if self.merge:
            merge_lora(self.backbone.denoiser)
            self._merged = True

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the adapters out before merged weights are loaded."""
        merged = not any(
            ".lora_" in name
            for name in checkpoint["state_dict"]
            if name.startswith(BACKBONE_PREFIX)
        )
        if merged and not self._merged:
            remove_lora(self.backbone.denoiser)
            self._merged = True
        super().on_load_checkpoint(checkpoint)


class PerConceptErasure(GradientErasure):
    """A method that trains a set of low-rank adapters for each concept, and fuses them into the
    text layers' weights.

    The adapters stand apart from the backbone, so that rows of a batch pass those of their own
    concepts side by side. An edit is weights at any time: a checkpoint holds what fusion would make
    of the adapters as they are. Adapters of concepts that a batch lacks rest.

    Args:
        rank: Of each adapter, at least 1.
        kwargs: Arguments of every gradient method.
    """

    has_unused = True
    finalizes_edit = True

    def __init__(self, *, rank: int = 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.rank = rank

    @abstractmethod
    def fused(self) -> Tensor:
        """The text layers' weights below each other, ``(out, D)``."""

    def adapt(self) -> None:
        """Make the adapters, apart from the backbone."""
        self.adapters = ConceptAdapters(
            self.backbone.text_layers().values(), len(self.concepts), self.rank
        )

    def trainable(self) -> dict[str, nn.Parameter]:
        """The adapters alone."""
        return {
            f"adapters.{name}": parameter for name, parameter in self.adapters.named_parameters()
        }

    def adapted(self, batch: NoisyBatch) -> AbstractContextManager[None]:
        """While entered, each row of the backbone's batch passes the adapters of its concept."""
        return self.adapters.beside(self.backbone.text_layers().values(), batch.indices)

    @torch.no_grad()
    def write_layers(self, weights: Tensor) -> None:
        """Put weights ``(out, D)`` into the text layers."""
        self.write(self._by_name(weights))

    def _by_name(self, weights: Tensor) -> dict[str, Tensor]:
        return dict(
            zip(
                self.editable(),
                weights.to(self.backbone.dtype).split_with_sizes(self.adapters.widths),
                strict=True,
            )
        )

    def on_train_end(self) -> None:
        """Fuse."""
        self.write_layers(self.fused())

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the adapters beside the edit they make."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["state_dict"] = {
            BACKBONE_PREFIX + name: weight for name, weight in self._by_name(self.fused()).items()
        }
        checkpoint["adapters"] = dict(self.adapters.state_dict())

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the adapters up where they were left; a finished edit has none."""
        super().on_load_checkpoint(checkpoint)
        self.adapters.load_state_dict(checkpoint.get("adapters", {}), strict=False)
