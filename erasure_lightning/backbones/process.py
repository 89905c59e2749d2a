"""Noise processes: the noising of latents and the target of a denoiser."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

#: Space in which the error of a prediction is measured: of the native prediction, the velocity, the
#: noise (``epsilon``) or the clean latents (``sample``).
LossSpace = Literal["native", "velocity", "epsilon", "sample"]

#: Cells of a density of times.
_CELLS = 1000


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

    def error_scale(self, space: LossSpace, t: Tensor) -> Tensor:
        """The absolute error in a space where that of the native prediction is 1, ``(B,)``.

        All spaces are affine in each other at fixed ``(x, t)``.
        """
        ...


def signal_and_noise(process: NoiseProcess, t: Tensor) -> tuple[Tensor, Tensor]:
    """The scales ``a`` and ``s`` of clean latents and noise at ``N`` times, ``(N, 1, 1, 1)`` each.

    Args:
        process: The noise process.
        t: Times, ``(N,)`` or ``()``.
    """
    one = torch.ones(t.numel(), 1, 1, 1, device=t.device)
    zero = torch.zeros_like(one)
    return process.noise(one, zero, t), process.noise(zero, one, t)


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

    def error_scale(self, space: LossSpace, t: Tensor) -> Tensor:
        """``s / a`` for the sample and ``1 / a`` for the velocity, where epsilon is native.

        Where the velocity is native, ``a`` for epsilon and ``s`` for the sample.
        """
        alpha = self.alpha(t).float()
        a = alpha.sqrt()
        s = (1 - alpha).sqrt()
        if space in ("native", self.prediction):
            return torch.ones_like(a)
        if self.prediction == "epsilon":
            return 1 / a if space == "velocity" else s / a
        return a if space == "epsilon" else s


@dataclass(frozen=True)
class RectifiedFlow:
    """The straight path ``x_t = (1 - s) x0 + s noise``, with the velocity ``v = noise - x0``.

    (Liu et al., arXiv 2209.03003; Esser et al., arXiv 2403.03206, equation 13.) A combination of
    predictions whose weights sum to 1 is the same in velocity, epsilon and sample space.

    Args:
        scale: ``t = scale s``: 1000 where a scheduler counts so.
    """

    scale: float = 1000.0

    def share(self, t: Tensor) -> Tensor:
        """``s``, of the shape of ``t``."""
        return t / self.scale

    def at(self, share: Tensor) -> Tensor:
        """``scale`` times the fraction."""
        return share * self.scale

    def draw_times(self, count: int, density: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Real-valued times above 0, ``(count,)``; uniform by default."""
        within = 1 - torch.rand(count)
        if density is None:
            return self.at(within)
        weights = density((torch.arange(_CELLS) + 0.5) / _CELLS)
        cells = torch.multinomial(weights, count, replacement=True)
        return self.at((cells + within) / _CELLS)

    def _s(self, like: Tensor, t: Tensor) -> Tensor:
        return self.share(t.to(like.device)).to(like.dtype).view(-1, 1, 1, 1)

    def noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Noised latents ``x_t``, ``(B, C, H, W)``."""
        s = self._s(x0, t)
        return (1 - s) * x0 + s * noise

    def remove(self, x: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """The clean latents of ``x_t``, ``(B, C, H, W)``; ``t`` is less than ``scale``."""
        s = self._s(x, t)
        return (x - s * noise) / (1 - s)

    def noise_in(self, x: Tensor, x0: Tensor, t: Tensor) -> Tensor:
        """The noise of ``x_t``, ``(B, C, H, W)``; ``t`` is above 0."""
        s = self._s(x, t)
        return (x - (1 - s) * x0) / s

    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """The velocity ``noise - x0``, ``(B, C, H, W)``."""
        return noise - x0

    def epsilon(self, prediction: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """``x_t + (1 - s) v``, ``(B, C, H, W)``."""
        return x + (1 - self._s(x, t)) * prediction

    def clean(self, prediction: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """``x_t - s v``, ``(B, C, H, W)``."""
        return x - self._s(x, t) * prediction

    def error_scale(self, space: LossSpace, t: Tensor) -> Tensor:
        """1 for the velocity, ``1 - s`` for epsilon, ``s`` for the sample."""
        s = self.share(t).float()
        if space in ("native", "velocity"):
            return torch.ones_like(s)
        return 1 - s if space == "epsilon" else s
