"""How the times of noise are sampled."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

#: How times are sampled over their range: uniformly; by ``importance`` as in MACE, mostly between
#: two and four tenths; or ``logit-normal``, mostly around the middle, as flow models are trained.
TimeSampling = Literal["uniform", "importance", "logit-normal"]

#: Distance from the ends of the range at which their logits are taken.
_MARGIN = 1e-6


def importance_density(share: Tensor) -> Tensor:
    """Density of MACE's times at shares of the range, 0..1, ``(N,)``.

    ``xi(t) = sigmoid(0.05 (t - 200)) - sigmoid(0.05 (t - 400))`` with ``t`` in 0..1000.
    """
    t = 1000 * share
    return torch.sigmoid(0.05 * (t - 200)) - torch.sigmoid(0.05 * (t - 400))


def logit_normal_density(share: Tensor) -> Tensor:
    """Density of the sigmoid of a standard normal at shares of the range, 0..1, ``(N,)``.

    Stable Diffusion 3's ``rf/lognorm(0, 1)`` (Esser et al., arXiv 2403.03206, equation 19). A shift
    by the image's size, which only a sampler knows, is not in it.
    """
    inside = share.clamp(_MARGIN, 1 - _MARGIN)
    normal = torch.exp(-inside.logit().square() / 2) / (2 * torch.pi) ** 0.5
    density: Tensor = normal / (inside * (1 - inside))
    return density


#: The density of each way of sampling, as `NoiseProcess.draw_times` takes it.
DENSITIES: dict[TimeSampling, Callable[[Tensor], Tensor] | None] = {
    "uniform": None,
    "importance": importance_density,
    "logit-normal": logit_normal_density,
}
