"""`EvaluationCounter`: counts what denoisers are asked."""

from collections.abc import Iterable
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


class EvaluationCounter:
    """Counts the latents that denoisers are asked about, from `start` to `stop` or while it is
    entered.

    Args:
        denoisers: Whom to listen to; each counts once, however often it is named.
    """

    def __init__(self, denoisers: Iterable[nn.Module]) -> None:
        self.denoisers = set(denoisers)
        self._hooks: list[RemovableHandle] = []
        #: All that were asked about, and those of them that a gradient could flow through.
        self.evaluations = self.backwards = 0

    def start(self) -> None:
        """Begin to count."""
        self._hooks = [denoiser.register_forward_hook(self._count) for denoiser in self.denoisers]

    def stop(self) -> None:
        """Count no more."""
        for hook in self._hooks:
            hook.remove()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _count(self, denoiser: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> None:
        self.evaluations += len(inputs[0])
        self.backwards += len(inputs[0]) if torch.is_grad_enabled() else 0
