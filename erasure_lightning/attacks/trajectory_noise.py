"""Trajectory noise: noise is added in every step of the sampling, in several amounts.

A probe of When Are Concepts Erased (Lu et al. 2025, arXiv 2505.17013, NeurIPS): noise moves the
trajectory off the path that the edit has turned away. With the plain prompt, DDIM steps take

    ``x_t' = a_t' x_0 + sqrt(|s_t'^2 - eta^2 v^2|) eps + scale eta v n``,
    ``v^2 = s_t'^2 (1 - r_t'^2 / r_t^2)``,

where ``r = s / a`` and ``n`` is new noise: ``v`` is the deviation of DDPM's steps, which ``eta`` 1
takes and larger ones exceed; hence the absolute value. Of all pairs of ``eta`` and ``scale`` the
image of the highest margin counts.

Verified in code (kevinlu4588/WhenAreConceptsErased@9a03e07, ``src/probes/noise_based_probe.py`` and
``src/noisy_diffuser_scheduling/schedulers/eta_ddim_scheduler.py``): 6 x 4 pairs, 50 steps, guidance
7.5, the best image by a ResNet-50. The notebook's formula has ``eta v^2`` where the code has
``eta^2 v^2``. There all tries draw from one generator, initial noise too; here all start from the
image's own noise.

The try is chosen by the scorer that also measures success, so that many tries succeed more often
by chance: the controls (`Probe`) have as many. ``no prompt`` adds the same noise without the
prompt.

Cost for each image: four times its sampling, once for each pair.
"""

from collections.abc import Sequence
from functools import partial

from torch import Tensor

from erasure_lightning.attacks.base import check_each_at_least
from erasure_lightning.attacks.probe import Attempts, Probe, best_tries, generate_by_ddim
from erasure_lightning.attacks.target import AttackCase, AttackTarget
from erasure_lightning.backbones.base import Backbone
from erasure_lightning.backbones.interface import Size
from erasure_lightning.backbones.process import NoiseProcess, signal_and_noise
from erasure_lightning.diffusion.ddim import DDIMStep, StepChange, ddim_times
from erasure_lightning.seeding import derive_seed


class TrajectoryNoise(Probe):
    """Adds noise along the edited model's trajectory, and counts the best of several tries.

    Args:
        etas: Amounts of new noise, each at least 0; 0 is DDIM, 1 is DDPM.
        scales: Factors of the new noise alone, each at least 0.
        seed: Seed of everything the attack draws at random.

    Raises:
        ErasureError: If there are no amounts or factors, or one is out of range.
    """

    def __init__(
        self,
        *,
        etas: Sequence[float] = (1.0, 1.17, 1.34, 1.51, 1.68, 1.85),
        scales: Sequence[float] = (1.0, 1.02, 1.03, 1.04),
        seed: int = 0,
    ) -> None:
        super().__init__(seed=seed)
        self.etas = list(etas)
        self.scales = list(scales)
        check_each_at_least(self, etas=0, scales=0)

    def prepare(self, target: AttackTarget, case: AttackCase) -> Attempts:
        """Sample with every pair; the baseline samples without a prompt."""
        size = target.settings.image_size
        noise = target.edited.noise(case.seeds, size)
        times = ddim_times(target.edited, target.steps, size)
        pairs = [(eta, scale) for eta in self.etas for scale in self.scales]

        def sample(prompt: str | None, model: Backbone, rows: slice) -> Tensor:
            tries = []
            for number, (eta, scale) in enumerate(pairs):
                seeds = [derive_seed(self.seed, seed, number) for seed in case.seeds[rows]]
                change = renew_noise(model, eta, scale, seeds, size)
                latents = generate_by_ddim(target, model, prompt, noise[rows], times, change)
                tries.append(model.decode(latents))
            return best_tries(target, case, tries)

        return Attempts(partial(sample, case.prompt), {"no prompt": partial(sample, None)})


def renew_noise(
    model: Backbone, eta: float, scale: float, seeds: Sequence[int], size: Size | None = None
) -> StepChange:
    """The change of steps that replaces a part of the predicted noise by new noise.

    Args:
        model: The model whose steps are changed.
        eta: Amount of new noise; 0 is DDIM, 1 is DDPM.
        scale: Factor of the new noise alone.
        seeds: One per image, of the new noise of all steps.
        size: Height and width in pixels; the model's own by default.
    """

    def change(step: DDIMStep) -> tuple[Tensor, Tensor]:
        ratio = _noise_ratio(model.process, step.cleaner) / _noise_ratio(model.process, step.t)
        new = eta * (1 - ratio**2).sqrt().to(step.noise)  # v / s_t'
        noise = model.noise([derive_seed(seed, step.number) for seed in seeds], size)
        return step.clean, (1 - new**2).abs().sqrt() * step.noise + scale * new * noise

    return change


def _noise_ratio(process: NoiseProcess, t: Tensor) -> Tensor:
    signal, noise = signal_and_noise(process, t)
    return noise / signal
