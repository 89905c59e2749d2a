"""Adversarial rows: states that stand in prompts and would bring a concept back; imports torch and nothing of ours."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Adam


class Adversaries:
    """A set of rows for each concept; they and their Adam outlive the step in which they were attacked with.

    Args:
        names: The concepts.
        shape: Rows of each, and their width ``(n, D)``.
        seed: They begin at ``U[0, 1)``.
        device: Where they are.
        settings: Adam's.
    """

    def __init__(
        self,
        names: Sequence[str],
        shape: tuple[int, int],
        seed: int,
        device: torch.device,
        settings: dict[str, float],
    ) -> None:
        drawn = torch.rand(len(names), *shape, generator=torch.Generator().manual_seed(seed))
        self._rows = {n: row.clone().to(device).requires_grad_(True) for n, row in zip(names, drawn, strict=True)}
        self._adam = Adam(self._rows.values(), **settings)  # type: ignore[arg-type]

    def of(self, names: Sequence[str]) -> Tensor:
        """The rows of each, ``(B, n, D)``."""
        return torch.stack([self._rows[name] for name in names])

    def attack(self, miss: Tensor) -> None:
        """A step towards less of what was missed; concepts that it does not speak of stand still, Adam and all."""
        slopes = torch.autograd.grad(miss, list(self._rows.values()), allow_unused=True)
        for row, slope in zip(self._rows.values(), slopes, strict=True):
            row.grad = slope
        self._adam.step()

    def state_dict(self) -> dict[str, Any]:
        """The rows and their Adam's state."""
        return {"rows": {name: row.detach() for name, row in self._rows.items()}, "adam": self._adam.state_dict()}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` left off."""
        for name, row in self._rows.items():
            row.copy_(state["rows"][name])
        self._adam.load_state_dict(state["adam"])
