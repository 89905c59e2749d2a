"""Local state preservation: retains the text states that the denoiser reads of retained prompts.

Ours, not SAGE's, whose local term is `LocalNoisePreservation`. A method that edits the text encoder
changes predictions through the encoder's states alone; retaining the states retains the predictions
at every latent and time at once, without the denoiser. Cost per step: a forward and backward of the
text encoder on a minibatch of prompts at full length.
"""

from typing import Any

from torch import Tensor

from erasure_lightning.retention.base import RetentionCallback
from erasure_lightning.training.gradient import GradientErasure
from erasure_lightning.training.prompt_states import state_drift


class LocalStatePreservation(RetentionCallback):
    """Retains the text encoder's states of retained prompts, padding included.

    ``E |y(r) - y*(r)|^2`` for retained prompts ``r``.

    Args:
        weight: Weight of the term.
        batch_size: Prompts sampled a step, on each rank.
        kwargs: Arguments of `RetentionCallback`.
    """

    name = "states"
    of_states = True

    def __init__(self, weight: float = 1.0, batch_size: int = 16, **kwargs: Any) -> None:
        super().__init__(weight, **kwargs)
        self.batch_size = batch_size

    def term(self, module: GradientErasure) -> Tensor:
        """Mean squared change of the states, and of pooled vectors if there are any, a scalar."""
        prompts = [self.retained[i] for i in self.draw(self.batch_size)]
        return state_drift(module.backbone.encode(prompts), module.original.encode(prompts))
