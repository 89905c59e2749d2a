"""`Sampler`: a diffusers scheduler on one rollout, with latents as the denoiser reads them and
noise that seeds fix.
"""

import inspect
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily

from erasure_lightning.backbones.process import NoiseProcess

#: Steps of the rollout on which a scheduler is tried; with fewer, solvers of higher order are off
#: by themselves.
_TRIAL_STEPS = 20

#: How far the deviation of the noise in a scheduler's latents may lie from the 1 of the noise
#: process.
_TOLERANCE = 0.1


class Sampler:
    """The steps from noise to clean latents, for one rollout of a batch.

    A scheduler keeps latents in a space of its own (that of a sigma, for Euler's kin) and scales
    them for the denoiser. `scaled` does it here, and what it gives are latents of the noise process
    at the time of the evaluation.

    Args:
        scheduler: A diffusers scheduler of this rollout's own.
        steps: Sampling steps, at least 1. A scheduler of higher order evaluates the denoiser more
            often.
        device: Where latents are.
        begin_index: Whether the stock pipeline tells the scheduler that it begins at the first
            step.
    """

    def __init__(
        self, scheduler: Any, steps: int, device: torch.device, *, begin_index: bool = False
    ) -> None:
        self.scheduler = scheduler
        scheduler.set_timesteps(steps, device=device)
        if begin_index and hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(0)
        #: Time of each evaluation of the denoiser, real-valued, ``(S,)``, from noise to clean.
        self.times: Tensor = scheduler.timesteps
        self._accepted = set(inspect.signature(scheduler.step).parameters)
        self._generators: list[torch.Generator] = []

    def noise(self, seeds: Sequence[int], shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """First latents ``(B, C, h, w)``; every further noise of the rollout comes from the same
        generators.

        Args:
            seeds: One a picture: a seed means the same latents in any batch and order, on any
                device.
            shape: Of one picture's latents, ``C, h, w``.
            dtype: Of the latents.
        """
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        drawn = torch.stack(
            [torch.randn(*shape, generator=generator) for generator in self._generators]
        )
        return drawn.to(self.times.device, dtype) * float(self.scheduler.init_noise_sigma)

    def scaled(self, x: Tensor, step: int) -> Tensor:
        """Latents as the denoiser reads them at a step, by number, ``(B, C, h, w)``."""
        return cast(Tensor, self.scheduler.scale_model_input(x, self.times[step]))

    def step(self, prediction: Tensor, step: int, x: Tensor) -> Tensor:
        """Latents behind a step, ``(B, C, h, w)``, from the (guided) prediction and the unscaled
        latents before it.
        """
        accepted: dict[str, Any] = {"generator": self._generators, "eta": 0.0}
        named = {key: value for key, value in accepted.items() if key in self._accepted}
        return cast(
            Tensor,
            self.scheduler.step(prediction, self.times[step], x, **named, return_dict=False)[0],
        )


def fresh_scheduler(scheduler: Any) -> Any:
    """A scheduler of the same class and settings, in its first state."""
    # What a pipeline repaired in a config is still listed as a default, which `from_config` would
    # restore.
    config = {key: value for key, value in scheduler.config.items() if key != "_use_default_values"}
    return type(scheduler).from_config(config)


def unsupported_reason(scheduler: Any, process: NoiseProcess) -> str | None:
    """Why a scheduler cannot be trained on and drawn with, in a clause; None where it can.

    Three properties are tried on a rollout of a perfect denoiser for a single clean image: it goes
    from noise to clean latents; at every evaluation the scaled latents are ``a x0 + s n`` of the
    noise process at that time, with ``n`` of deviation 1; and a picture is a function of its seed,
    whatever else is in the batch.

    Args:
        scheduler: A diffusers scheduler.
        process: The noise process of the model that it is for.
    """
    state = torch.get_rng_state()
    try:
        with unset_fake_temporarily():  # a plan makes models without values; a trial needs some
            return _broken_property(scheduler, process)
    except Exception as error:  # third-party code fails in its own ways
        cause = f"{type(error).__name__}: {error}".splitlines()[0]
        return f"cannot step from noise to clean latents of this model ({cause[:120]})"
    finally:
        torch.set_rng_state(state)


def _broken_property(scheduler: Any, process: NoiseProcess) -> str | None:
    shares = process.share(_sampler(scheduler).times.double())
    if not (shares[0] > shares[-1] and shares.min() >= 0 and shares.max() <= 1):
        return "does not go from noise to clean latents at times of the model's noise process"
    state = torch.get_rng_state()
    both, deviations = _rollout(scheduler, process, [5, 7])
    alone, _ = _rollout(scheduler, process, [7])
    if not both.isfinite().all():
        return (
            "ends in latents that are not finite, as epsilon does where the signal-to-noise ratio"
            " is 0"
        )
    if not (torch.equal(both[1:], alone) and torch.equal(state, torch.get_rng_state())):
        return "draws noise that a picture's seed does not fix"
    if not all(abs(deviation - 1) < _TOLERANCE for deviation in deviations):
        return (
            "shows the denoiser latents that are not those of the model's noise process at their"
            " time"
        )
    return None


def _sampler(scheduler: Any) -> Sampler:
    return Sampler(fresh_scheduler(scheduler), _TRIAL_STEPS, torch.device("cpu"))


def _rollout(
    scheduler: Any, process: NoiseProcess, seeds: Sequence[int]
) -> tuple[Tensor, list[float]]:
    """Latents behind a rollout of a perfect denoiser, and the deviation of ``n`` at each
    evaluation.
    """
    clean = torch.rand(1, 4, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    sampler, deviations = _sampler(scheduler), list[float]()
    x = sampler.noise(seeds, clean.shape[1:], torch.float32)
    for step, t in enumerate(sampler.times):
        here = sampler.scaled(x, step)
        noise = process.noise_in(here, clean, t)
        deviations.append(noise.std().item())
        x = sampler.step(process.target(clean, noise, t), step, x)
    return x, deviations
