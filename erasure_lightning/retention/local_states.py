"""Local state preservation: what the denoiser reads of retained prompts stays as it was.

Ours, not SAGE's, whose local term is `LocalNoisePreservation`. A method that edits the text encoder
changes predictions through the encoder's states alone; holding the states holds the predictions at
every latent and time at once, and needs no denoiser. Cost per step: a pass of the text encoder over
the drawn prompts at full length.
"""

from typing import Any

from torch import Tensor

from erasure_lightning.retention.base import RetentionCallback
from erasure_lightning.training.gradient import GradientErasure
from erasure_lightning.training.prompt_states import state_drift


class LocalStatePreservation(RetentionCallback):
    """Keeps the text encoder's states on retained prompts as they were, padding included: ``E |y(r)
    - y*(r)|^2``.

    Args:
        weight: Of the term.
        batch_size: Prompts drawn a step, on each rank.
        kwargs: Arguments of every retention callback.
    """

    name = "states"
    of_states = True

    def __init__(self, weight: float = 1.0, batch_size: int = 16, **kwargs: Any) -> None:
        super().__init__(weight, **kwargs)
        self.batch_size = batch_size

    def term(self, module: GradientErasure) -> Tensor:
        """Mean squared change of the states ``(B, L, D)``, and of pooled vectors where there are
        any, a scalar.
        """
        prompts = [self.retained[i] for i in self.draw(self.batch_size)]
        return state_drift(module.backbone.encode(prompts), module.original.encode(prompts))
