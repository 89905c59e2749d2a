"""`ClosedFormErasure`: methods that solve for their edit."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from erasure_lightning.backbones.interface import TextInput
from erasure_lightning.concepts.concept import PromptBatch
from erasure_lightning.distributed.collectives import broadcast
from erasure_lightning.errors import ErasureError
from erasure_lightning.training.base import ErasureModule
from erasure_lightning.training.regression import Regression
from erasure_lightning.training.text_regressions import solve_text_inputs


class ClosedFormErasure(ErasureModule):
    """Base of methods that solve for their edit: one step without a gradient.

    The trainer's precision does not apply: autocast would round the inputs of the equations, and
    the weights that are solved for.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.automatic_optimization = False

    def editable(self) -> dict[str, nn.Parameter]:
        """The weights of every layer whose input is a function of the prompt alone."""
        layers: dict[str, nn.Module] = {}
        for source in self.backbone.text_inputs():
            layers |= source.layers
        return {f"{n}.weight": cast(nn.Parameter, layer.weight) for n, layer in layers.items()}

    @abstractmethod
    def solve(self) -> dict[str, Tensor]:
        """New values of all parameters of `editable`, by name, in any precision."""

    def solve_each(
        self, fill: Callable[[Regression, TextInput], None], ridge: float
    ) -> dict[str, Tensor]:
        """`solve_text_inputs` with the terms that ``fill`` adds to each text input's equations."""
        return solve_text_inputs(self, fill, ridge)

    @torch.no_grad()
    def training_step(self, batch: PromptBatch, batch_idx: int) -> None:
        """Solve on one rank, write the weights and stop; after that one step, only stop.

        Raises:
            ErasureError: If the solution is not one of every editable parameter and no other.
        """
        self.trainer.should_stop = True
        if self.global_step:
            return
        if self.global_rank == 0 or self.backbone.sharded:
            with torch.autocast(self.device.type, enabled=False):
                solution = self.solve()
            if self.editable().keys() != solution.keys():
                raise ErasureError(
                    f"{type(self).__name__}.solve must return every editable parameter and no"
                    " other."
                )
            self.write(solution)
        broadcast(self.editable().values())
        optimizer = self.optimizers()
        optimizer.step()  # type: ignore[union-attr]

    def configure_optimizers(self) -> Optimizer:
        """A placeholder: Lightning counts steps, and saves, by optimizers alone."""
        return torch.optim.SGD([nn.Parameter(torch.zeros(()))], lr=0.0)
