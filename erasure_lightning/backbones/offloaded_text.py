"""Frozen text towers on the CPU, which are on the device only while they encode."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import nn


class OffloadedText:
    """Moves text towers to the CPU, and back for as long as they encode.

    Meanwhile the denoiser's frozen weights are on the CPU: a T5-XXL of 9 GiB in bfloat16 and a
    denoiser of 22 need not fit beside each other.

    Args:
        towers: The frozen text towers.
        denoiser: The denoiser.
        is_sharded: Whether the denoiser is sharded; then it stays on its devices.
    """

    def __init__(self, towers: nn.Module, denoiser: nn.Module, is_sharded: bool) -> None:
        self._towers = towers
        self._denoiser = denoiser
        self._is_sharded = is_sharded
        #: Whether the towers are on the CPU now.
        self.is_away = True
        towers.to("cpu")

    @contextmanager
    def on_device(self) -> Iterator[None]:
        """Context in which the towers are on the device; without effect within another one."""
        if not self.is_away:
            yield
            return
        device = next(self._denoiser.parameters()).device
        try:
            self._move_denoiser(torch.device("cpu"))
            self._towers.to(device)
            self.is_away = False
            yield
        finally:
            self.is_away = True
            self._towers.to("cpu")
            self._move_denoiser(device)

    def _move_denoiser(self, device: torch.device) -> None:
        """Moves layers without trained parameters.

        The gradient accumulator of a trained one would be lost, and with it the hooks of DDP.
        """
        if self._is_sharded:
            return
        for part in self._denoiser.modules():
            if not any(p.requires_grad for p in part.parameters(recurse=False)):
                cast(Any, part)._apply(lambda tensor: tensor.to(device), recurse=False)
