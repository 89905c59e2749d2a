"""`Sampler`: a diffusers scheduler for one rollout, with noise that depends on the seeds alone."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily

from erasure_lightning.backbones.process import NoiseProcess

#: Steps of the trial rollout of a scheduler; with fewer, solvers of higher order are inaccurate.
_TRIAL_STEPS = 20

#: Largest allowed difference between 1 and the standard deviation of the noise in the latents.
_TOLERANCE = 0.1


class Sampler:
    """The steps from noise to clean latents, for one rollout of a batch.

    A scheduler has latents in a space of its own (scaled by sigma, for Euler and Heun) and scales
    them for the denoiser. `scaled` does so: its results are latents of the noise process at the
    time of the evaluation.

    Args:
        scheduler: A diffusers scheduler, used by this rollout alone.
        steps: Sampling steps, at least 1. A scheduler of higher order evaluates the denoiser more
            often.
        device: Device of the latents.
        begin_index: Whether to call ``set_begin_index(0)``, as the stock pipelines of some families
            do.
        schedule: Arguments of ``set_timesteps`` in place of the number of steps.
    """

    def __init__(
        self,
        scheduler: Any,
        steps: int,
        device: torch.device,
        *,
        begin_index: bool = False,
        schedule: Mapping[str, Any] | None = None,
    ) -> None:
        self.scheduler = scheduler
        if schedule is None:
            scheduler.set_timesteps(steps, device=device)
        else:
            scheduler.set_timesteps(device=device, **schedule)
        if begin_index and hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(0)
        #: Time of each evaluation of the denoiser, real-valued, ``(S,)``, from noise to clean.
        self.times: Tensor = scheduler.timesteps
        self._accepted = set(inspect.signature(scheduler.step).parameters)
        self._generators: list[torch.Generator] = []

    def noise(self, seeds: Sequence[int], shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Initial latents ``(B, C, h, w)``; all later noise comes from the same generators.

        Args:
            seeds: One per image: a seed gives the same latents in any batch and order, on any
                device.
            shape: Shape of one image's latents, ``C, h, w``.
            dtype: Precision of the latents.
        """
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        noise = torch.stack([torch.randn(*shape, generator=g) for g in self._generators])
        # Schedulers of flows begin at noise of deviation 1, and have no such attribute.
        sigma = getattr(self.scheduler, "init_noise_sigma", 1.0)
        return noise.to(self.times.device, dtype) * float(sigma)

    def scaled(self, x: Tensor, step: int) -> Tensor:
        """Latents as the denoiser reads them at a step (its number), ``(B, C, h, w)``."""
        scale = getattr(self.scheduler, "scale_model_input", None)  # flows are never scaled
        return x if scale is None else cast(Tensor, scale(x, self.times[step]))

    def step(self, prediction: Tensor, step: int, x: Tensor) -> Tensor:
        """Latents after a step, ``(B, C, h, w)``.

        Args:
            prediction: The (guided) prediction.
            step: Number of the step.
            x: Unscaled latents before the step.
        """
        options: dict[str, Any] = {"generator": self._generators, "eta": 0.0}
        options = {key: value for key, value in options.items() if key in self._accepted}
        t = self.times[step]
        return cast(Tensor, self.scheduler.step(prediction, t, x, **options, return_dict=False)[0])


def fresh_scheduler(scheduler: Any) -> Any:
    """A new scheduler of the same class and settings."""
    # A value that a pipeline repaired in the config is still listed as a default, which
    # `from_config` would restore.
    config = {key: value for key, value in scheduler.config.items() if key != "_use_default_values"}
    return type(scheduler).from_config(config)


def unsupported_reason(make: Callable[[int], Sampler], process: NoiseProcess) -> str | None:
    """Why a scheduler cannot be used for training and sampling, as a clause; None if it can.

    Three properties are tested in a rollout of a perfect denoiser for a single clean image: it goes
    from noise to clean latents; at every evaluation the scaled latents are ``a x0 + s n`` of the
    noise process at that time, with ``n`` of standard deviation 1; and an image is a function of
    its seed, whatever else is in the batch.

    Args:
        make: Makes a sampler of so many steps on the CPU.
        process: The model's noise process.
    """
    state = torch.get_rng_state()
    try:
        with unset_fake_temporarily():  # the trial needs values, also under a plan's fake tensors
            return _broken_property(lambda: make(_TRIAL_STEPS), process)
    except Exception as error:  # schedulers may raise anything
        cause = f"{type(error).__name__}: {error}".splitlines()[0]
        return f"cannot step from noise to clean latents of this model ({cause[:120]})"
    finally:
        torch.set_rng_state(state)


def _broken_property(make: Callable[[], Sampler], process: NoiseProcess) -> str | None:
    fractions = process.share(make().times.double())
    if not (fractions[0] > fractions[-1] and fractions.min() >= 0 and fractions.max() <= 1):
        return "does not go from noise to clean latents at times of the model's noise process"
    state = torch.get_rng_state()
    both, deviations = _rollout(make, process, [5, 7])
    alone, _ = _rollout(make, process, [7])
    if not both.isfinite().all():
        return (
            "ends in latents that are not finite, as epsilon does where the signal-to-noise ratio"
            " is 0"
        )
    if not (torch.equal(both[1:], alone) and torch.equal(state, torch.get_rng_state())):
        return "draws noise that an image's seed does not fix"
    if not all(abs(deviation - 1) < _TOLERANCE for deviation in deviations):
        return (
            "shows the denoiser latents that are not those of the model's noise process at their"
            " time"
        )
    return None


def _rollout(
    make: Callable[[], Sampler], process: NoiseProcess, seeds: Sequence[int]
) -> tuple[Tensor, list[float]]:
    """Latents after a perfect denoiser's rollout, and the deviation of ``n`` at each evaluation."""
    clean = torch.rand(1, 4, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    sampler = make()
    deviations: list[float] = []
    x = sampler.noise(seeds, clean.shape[1:], torch.float32)
    for step, t in enumerate(sampler.times):
        noise = process.noise_in(sampler.scaled(x, step), clean, t)
        deviations.append(noise.std().item())
        x = sampler.step(process.target(clean, noise, t), step, x)
    return x, deviations
