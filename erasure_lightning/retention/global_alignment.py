"""Global semantic relationship alignment, the first retention term of SAGE (arXiv 2506.09363).

The idea is stated in the paper; the matrix is our reconstruction. Cost per step: one forward and
backward of the text encoder on a minibatch of prompts, cut to the longest of them; no denoiser.
"""

from typing import Any, Literal

import torch
from torch import Tensor, distributed
from torch.nn.functional import kl_div, log_softmax

from erasure_lightning.checks import require
from erasure_lightning.retention.base import RetentionCallback
from erasure_lightning.training.gradient import GradientErasure
from erasure_lightning.training.prompt_states import cosine_matrix

#: Prompts encoded at once.
_CHUNK = 256


class GlobalSemanticAlignment(RetentionCallback):
    """Retains the similarities of retained prompts to each other, in end-of-text states.

    With ``s*`` the original's and ``s`` the trained encoder's states, ``R*_ij = cos(s*_i, s*_j)``
    and

    * ``cross``: ``R_ij = cos(s_i, s*_j)``, trained rows against original columns, mean squared
      difference. The denoiser depends on absolute states, and this is the mode that retains them.
    * ``self``: ``R_ij = cos(s_i, s_j)``; invariant to a rotation of all states.
    * ``kl_softmax``: as ``cross``, but the rows as distributions, compared by Kullback-Leibler
      divergence.

    Args:
        weight: Weight of the term.
        mode: Which similarities are compared.
        batch_size: Prompts sampled a step (rows), on each rank.
        temperature: Temperature of ``kl_softmax``, above 0.
        kwargs: Arguments of `RetentionCallback`.

    Raises:
        ErasureError: If a number is out of range.
    """

    name = "global"
    of_states = True

    def __init__(
        self,
        weight: float = 1.0,
        mode: Literal["cross", "self", "kl_softmax"] = "cross",
        batch_size: int = 64,
        temperature: float = 0.05,
        **kwargs: Any,
    ) -> None:
        super().__init__(weight, **kwargs)
        require(type(self).__name__, above=0, temperature=temperature)
        self.mode = mode
        self.batch_size = batch_size
        self.temperature = temperature
        self._originals = torch.empty(0)

    @torch.no_grad()
    def prepare(self, module: GradientErasure) -> None:
        """Encodes every retained prompt with the original, once: the columns of the matrices."""
        original = module.original
        parts = [self.retained[i : i + _CHUNK] for i in range(0, len(self.retained), _CHUNK)]
        self._originals = torch.cat([original.summarize(original.embed(part)) for part in parts])

    def term(self, module: GradientErasure) -> Tensor:
        """Distance between the trained and the original similarities, a scalar."""
        rows = self.draw(self.batch_size)
        prompts = [self.retained[i] for i in rows]
        states = module.backbone.summarize(module.backbone.embed(prompts))
        original_states = self._originals[rows]
        if self.mode == "self":
            # The columns are the rows of all ranks, and have gradient too.
            similarities = cosine_matrix(states, _gather(module, states))
            target = cosine_matrix(original_states, _gather(module, original_states))
            return (similarities - target).square().mean()
        similarities = cosine_matrix(states, self._originals)
        target = cosine_matrix(original_states, self._originals)
        if self.mode == "cross":
            return (similarities - target).square().mean()
        return kl_div(
            log_softmax(similarities / self.temperature, dim=-1),
            log_softmax(target / self.temperature, dim=-1),
            reduction="batchmean",
            log_target=True,
        )


def _gather(module: GradientErasure, states: Tensor) -> Tensor:
    """The states ``(N, D)`` of all ranks, ``(ranks * N, D)``."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return states
    gathered = module.all_gather(states, sync_grads=True)
    assert isinstance(gathered, Tensor)
    return gathered.flatten(0, 1)
