"""Global semantic relationship alignment, SAGE's first retention term (arXiv 2506.09363).

The idea is stated in the paper; the matrix is our reconstruction. Cost per step: one pass of the
text encoder over the drawn prompts, cut to the longest of them; no denoiser.
"""

from typing import Any, Literal

import torch
from torch import Tensor, distributed
from torch.nn.functional import kl_div, log_softmax

from erasure_lightning.retention.base import RetentionCallback
from erasure_lightning.training.gradient import GradientErasure
from erasure_lightning.training.prompt_states import cosine_matrix


class GlobalSemanticAlignment(RetentionCallback):
    """Keeps the relations of retained prompts to each other, measured in end-of-text states, as
    they were.

    With ``s*`` the original's and ``s`` the trained encoder's states, ``R*_ij = cos(s*_i, s*_j)``
    and

    * ``cross``: ``R_ij = cos(s_i, s*_j)``, trained rows against original columns, mean squared
      difference. The denoiser expects absolute positions, and this is the mode that holds them.
    * ``self``: ``R_ij = cos(s_i, s_j)``; blind to a rotation of all states.
    * ``kl_softmax``: as ``cross``, but the rows as distributions, compared by Kullback-Leibler
      divergence.

    Args:
        weight: Of the term.
        mode: Which relations are compared.
        batch_size: Prompts drawn a step (rows), on each rank.
        temperature: Of ``kl_softmax``, above 0.
        kwargs: Arguments of every retention callback.
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
        self.mode = mode
        self.batch_size = batch_size
        self.temperature = temperature
        self._originals = torch.empty(0)

    @torch.no_grad()
    def prepare(self, module: GradientErasure) -> None:
        """Encode every retained prompt with the original, once: the columns of every step's matrix."""
        parts = [self.retained[i : i + 256] for i in range(0, len(self.retained), 256)]
        original = module.original
        self._originals = torch.cat([original.summarize(original.embed(part)) for part in parts])

    def term(self, module: GradientErasure) -> Tensor:
        """Distance between trained and original relations, a scalar."""
        rows = self.draw(self.batch_size)
        states = module.backbone.summarize(module.backbone.embed([self.retained[i] for i in rows]))
        before = self._originals[rows]
        if self.mode == "self":
            # Ranks see each other's rows, so that the matrix spans them all; the columns carry
            # gradient too.
            everyone, everyone_before = _gather(module, states), _gather(module, before)
            return (
                (cosine_matrix(states, everyone) - cosine_matrix(before, everyone_before))
                .square()
                .mean()
            )
        now, then = cosine_matrix(states, self._originals), cosine_matrix(before, self._originals)
        if self.mode == "cross":
            return (now - then).square().mean()
        heat = self.temperature
        logs = log_softmax(now / heat, dim=-1), log_softmax(then / heat, dim=-1)
        return kl_div(*logs, reduction="batchmean", log_target=True)


def _gather(module: GradientErasure, states: Tensor) -> Tensor:
    """Every rank's states ``(N, D)`` in one ``(ranks * N, D)``."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return states
    gathered = module.all_gather(states, sync_grads=True)
    assert isinstance(gathered, Tensor)
    return gathered.flatten(0, 1)
