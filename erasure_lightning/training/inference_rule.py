"""`InferenceRule`: methods without training, whose edit is a rule that acts at inference."""

from abc import abstractmethod
from dataclasses import asdict
from functools import cached_property
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn
from torch import nn

from erasure_lightning.adapters.base import ADAPTER_CHILD, AdapterPlan
from erasure_lightning.adapters.kinds import adapter_parameters, install
from erasure_lightning.training.closed_form import ClosedFormErasure


class InferenceRule(ClosedFormErasure):
    """Base of methods that install rules in a model and solve for what the rules hold.

    No weight changes. A rule acts where it is installed: in layers of the denoiser, on what a text
    encoder returns, or on the denoiser's predictions. Its tensors are the edit, which is saved,
    applied at a strength and removed as one of adapters, in stock pipelines too.
    """

    @abstractmethod
    def plans(self) -> dict[str, AdapterPlan]:
        """The rules of each part of the backbone, by its name; called once, before installation.

        A plan's layer with an empty name is the part itself.
        """

    @cached_property
    def _plans(self) -> dict[str, AdapterPlan]:
        return self.plans()

    def modified(self) -> list[str]:
        """Names of the rules' modules."""
        layers = [f"{part}.{layer}" for part, plan in self._plans.items() for layer in plan.layers]
        return [f"{layer.removesuffix('.')}.{ADAPTER_CHILD}" for layer in layers]

    def adapt(self) -> None:
        """Installs the rules."""
        for part, plan in self._plans.items():
            install(self.backbone.get_submodule(part), plan)

    def editable(self) -> dict[str, nn.Parameter]:
        """The rules' tensors."""
        return adapter_parameters(self.backbone)

    def description(self) -> dict[str, Any]:
        """Metadata of an edit, with the plans of the rules to install in a pipeline."""
        components = self.backbone.components
        plans = {components[part]: asdict(plan) for part, plan in self._plans.items()}
        return super().description() | {"adapters": plans}

    def on_train_start(self) -> None:
        """Warns of retention callbacks, which have no equations here."""
        if self.retention:
            names = ", ".join(type(term).__name__ for term in self.retention)
            rank_zero_warn(
                f"{type(self).__name__} is a rule without equations that a retention callback could"
                f" join; found {names}, which has no effect on it. Leave it out."
            )
