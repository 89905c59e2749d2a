"""Noise processes: how latents are noised and what a denoiser predicts."""

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor


class NoiseProcess(Protocol):
    """How clean latents become noise, and what the denoiser says about it.

    Times ``t`` are in the backbone's own units, shape ``(B,)``; latents and predictions are ``(B, C, H, W)``.
    """

    @property
    def times(self) -> int:
        """How many times there are; ``t`` runs from 0 to ``times - 1``."""
        ...

    def noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Noised latents ``x_t``."""
        ...

    def remove(self, x: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """The clean latents ``x0`` behind ``x_t``, given its noise: what `noise` did, undone."""
        ...

    def noise_in(self, x: Tensor, x0: Tensor, t: Tensor) -> Tensor:
        """The noise of ``x_t``, given its clean latents."""
        ...

    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What a perfect denoiser predicts at ``x_t``."""
        ...

    def epsilon(self, prediction: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """The noise that a native prediction at ``(x, t)`` stands for."""
        ...

    def clean(self, prediction: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """The clean latents ``x0`` that a native prediction at ``(x, t)`` stands for."""
        ...


@dataclass(frozen=True)
class Diffusion:
    """The variance-preserving diffusion ``x_t = a x0 + s noise`` with ``a^2 = alphas``, ``s^2 = 1 - alphas``.

    Args:
        alphas: The cumulative products of the schedule, ``(T,)``, in 0..1, falling.
        prediction: ``epsilon`` (the noise) or ``velocity`` (``a noise - s x0``; Salimans and Ho, arXiv 2202.00512).
    """

    alphas: Tensor
    prediction: Literal["epsilon", "velocity"]

    @property
    def times(self) -> int:
        """How many times there are."""
        return len(self.alphas)

    def _scales(self, like: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha = self.alphas.to(device=like.device)[t].to(like.dtype).view(-1, 1, 1, 1)
        return alpha.sqrt(), (1 - alpha).sqrt()

    def noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Noised latents ``x_t``, ``(B, C, H, W)``."""
        a, s = self._scales(x0, t)
        return a * x0 + s * noise

    def remove(self, x: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """The clean latents behind ``x_t``, ``(B, C, H, W)``."""
        a, s = self._scales(x, t)
        return (x - s * noise) / a

    def noise_in(self, x: Tensor, x0: Tensor, t: Tensor) -> Tensor:
        """The noise of ``x_t``, ``(B, C, H, W)``."""
        a, s = self._scales(x, t)
        return (x - a * x0) / s

    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What a perfect denoiser predicts at ``x_t``, ``(B, C, H, W)``."""
        if self.prediction == "epsilon":
            return noise
        a, s = self._scales(x0, t)
        return a * noise - s * x0

    def epsilon(self, prediction: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """The noise a prediction stands for, ``(B, C, H, W)``."""
        if self.prediction == "epsilon":
            return prediction
        a, s = self._scales(x, t)
        return s * x + a * prediction

    def clean(self, prediction: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """The clean latents a prediction stands for, ``(B, C, H, W)``."""
        a, s = self._scales(x, t)
        return a * x - s * prediction if self.prediction == "velocity" else (x - s * prediction) / a


def draw_times(process: NoiseProcess, count: int, device: torch.device) -> Tensor:
    """``count`` times, uniform over all of them, ``(B,)``; drawn on the CPU so that every device draws the same."""
    return torch.randint(process.times, (count,)).to(device)
