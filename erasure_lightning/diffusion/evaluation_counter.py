"""`EvaluationCounter`: counts evaluations of denoisers."""

from collections.abc import Iterable
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


class EvaluationCounter:
    """Counts the latents that denoisers evaluate, from `start` to `stop` or as a context manager.

    Args:
        denoisers: The denoisers; repeats count once.
    """

    def __init__(self, denoisers: Iterable[nn.Module]) -> None:
        self.denoisers = set(denoisers)
        self._hooks: list[RemovableHandle] = []
        #: Latents that were evaluated.
        self.evaluations = 0
        #: Those of them that were evaluated with gradients enabled.
        self.backwards = 0

    def start(self) -> None:
        """Starts counting."""
        self._hooks = [denoiser.register_forward_hook(self._count) for denoiser in self.denoisers]

    def stop(self) -> None:
        """Stops counting."""
        for hook in self._hooks:
            hook.remove()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _count(self, denoiser: nn.Module, _: Any, output: tuple[Tensor, ...]) -> None:
        count = len(output[0])  # inputs may come by keyword
        self.evaluations += count
        self.backwards += count if torch.is_grad_enabled() else 0
