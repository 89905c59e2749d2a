"""Noise processes: the noising of latents and the target of a denoiser."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor


class NoiseProcess(Protocol):
    """The noising of clean latents, and the meaning of a denoiser's prediction.

    Times ``t`` are real-valued, in the backbone's own units, ``(B,)`` or ``()``; latents and
    predictions are ``(B, C, H, W)``.
    """

    def share(self, t: Tensor) -> Tensor:
        """Times as fractions of the range, from 0 (clean) to 1 (noise), of their shape."""
        ...

    def at(self, share: Tensor) -> Tensor:
        """Times at fractions 0..1 of the range, of their shape."""
        ...

    def draw_times(self, count: int, density: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Random times ``(count,)`` from the CPU's generator, the same for every device.

        Args:
            count: Number of times.
            density: Maps fractions 0..1 ``(N,)`` to weights ``(N,)``; uniform by default.
        """
        ...

    def noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Noised latents ``x_t``."""
        ...

    def remove(self, x: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """The clean latents ``x0`` of ``x_t`` and its noise: the inverse of `noise`."""
        ...

    def noise_in(self, x: Tensor, x0: Tensor, t: Tensor) -> Tensor:
        """The noise of ``x_t`` and its clean latents."""
        ...

    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """The prediction of a perfect denoiser at ``x_t``."""
        ...

    def epsilon(self, prediction: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """The noise that a native prediction at ``(x, t)`` implies."""
        ...

    def clean(self, prediction: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """The clean latents ``x0`` that a native prediction at ``(x, t)`` implies."""
        ...


@dataclass(frozen=True)
class Diffusion:
    """The variance-preserving diffusion ``x_t = a x0 + s noise``.

    ``a^2 = alphas`` and ``s^2 = 1 - alphas``. Between two times of the schedule ``log(s / a)`` is
    linear, as in k-diffusion's ``t_to_sigma``.

    Args:
        alphas: The cumulative products of the schedule, ``(T,)``, in 0..1, falling.
        prediction: ``epsilon`` (the noise) or ``velocity`` (``a noise - s x0``; Salimans and Ho,
            arXiv 2202.00512).
    """

    alphas: Tensor
    prediction: Literal["epsilon", "velocity"]

    def share(self, t: Tensor) -> Tensor:
        """``t / T``, of the shape of ``t``."""
        return t / len(self.alphas)

    def at(self, share: Tensor) -> Tensor:
        """``T`` times the fraction, at most the last time of the schedule."""
        return (share * len(self.alphas)).clamp(max=len(self.alphas) - 1)

    def draw_times(self, count: int, density: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Whole times of the schedule ``(count,)``; uniform by default."""
        if density is None:
            return torch.randint(len(self.alphas), (count,)).float()
        weights = density(torch.arange(len(self.alphas)) / len(self.alphas))
        return torch.multinomial(weights, count, replacement=True).float()

    def alpha(self, t: Tensor) -> Tensor:
        """``a^2`` at real-valued times, of their shape, in the precision of the schedule."""
        alphas = self.alphas.to(t.device)
        low = t.floor().long().clamp(0, len(alphas) - 1)
        high = (low + 1).clamp(max=len(alphas) - 1)
        between = (t - low).clamp(0, 1).to(alphas)
        before, after = ((alphas[i] / (1 - alphas[i])).log() for i in (low, high))
        return torch.where(between == 0, alphas[low], torch.lerp(before, after, between).sigmoid())

    def _scales(self, like: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha = self.alpha(t.to(like.device)).to(like.dtype).view(-1, 1, 1, 1)
        return alpha.sqrt(), (1 - alpha).sqrt()

    def noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Noised latents ``x_t``, ``(B, C, H, W)``."""
        a, s = self._scales(x0, t)
        return a * x0 + s * noise

    def remove(self, x: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """The clean latents of ``x_t``, ``(B, C, H, W)``."""
        a, s = self._scales(x, t)
        return (x - s * noise) / a

    def noise_in(self, x: Tensor, x0: Tensor, t: Tensor) -> Tensor:
        """The noise of ``x_t``, ``(B, C, H, W)``."""
        a, s = self._scales(x, t)
        return (x - a * x0) / s

    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """The prediction of a perfect denoiser at ``x_t``, ``(B, C, H, W)``."""
        if self.prediction == "epsilon":
            return noise
        a, s = self._scales(x0, t)
        return a * noise - s * x0

    def epsilon(self, prediction: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """The noise that a prediction implies, ``(B, C, H, W)``."""
        if self.prediction == "epsilon":
            return prediction
        a, s = self._scales(x, t)
        return s * x + a * prediction

    def clean(self, prediction: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """The clean latents that a prediction implies, ``(B, C, H, W)``."""
        a, s = self._scales(x, t)
        return a * x - s * prediction if self.prediction == "velocity" else (x - s * prediction) / a
