"""Ancestral steps: DDIM's at eta 1, Bayes' posterior on every process, and their densities."""

import math

import diffusers
import pytest
import torch

from erasure_lightning.backbones.process import Diffusion, RectifiedFlow, signal_and_noise
from erasure_lightning.backbones.tiny import TinyBackbone, TinyFlux
from erasure_lightning.diffusion.stochastic_steps import (
    DiagonalGaussian,
    ancestral_rollout,
    ancestral_step,
    noising,
    stochastic_times,
)

ALPHAS = diffusers.DDIMScheduler(beta_schedule="scaled_linear").alphas_cumprod
PROCESSES = {
    "epsilon": (Diffusion(ALPHAS, "epsilon"), 700.0, 400.0),
    "velocity": (Diffusion(ALPHAS, "velocity"), 700.0, 400.0),
    "flow": (RectifiedFlow(), 700.0, 400.0),
    "flow from noise": (RectifiedFlow(), 1000.0, 800.0),
}
on_every_process = pytest.mark.parametrize(
    ("process", "t", "after_t"), PROCESSES.values(), ids=PROCESSES
)


def draw(number, count=2):
    return torch.randn(count, 4, 8, 8, generator=torch.Generator().manual_seed(number))


def times(t, count=2):
    return torch.full((count,), t)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("number", [0, 3, 9])
def test_a_step_is_that_of_ddim_at_eta_1(prediction, number):
    scheduler = diffusers.DDIMScheduler(
        beta_schedule="scaled_linear",
        prediction_type=prediction,
        clip_sample=False,
        set_alpha_to_one=False,
    )
    scheduler.set_timesteps(10)
    kind = "epsilon" if prediction == "epsilon" else "velocity"
    t = scheduler.timesteps[number] + 1
    after_t = (t - 100).clamp(min=0)
    x, output, noise = draw(0), draw(1), draw(2)
    stock = scheduler.step(output, t, x, eta=1.0, variance_noise=noise).prev_sample
    step = ancestral_step(
        Diffusion(ALPHAS, kind), output, x, times(float(t)), times(float(after_t)), 1.0
    )
    assert torch.allclose(step.mean + step.deviation * noise, stock, atol=1e-4)


@on_every_process
def test_a_step_of_a_perfect_prediction_is_bayes_posterior(process, t, after_t):
    x0, noise = draw(3), draw(4)
    x = process.noise(x0, noise, times(t))
    step = ancestral_step(
        process, process.target(x0, noise, times(t)), x, times(t), times(after_t), 1.0
    )
    after_a, after_s = signal_and_noise(process, times(after_t))
    # x = r u + v n of u ~ N(a x0, s^2): precisions add
    likelihood = noising(process, torch.ones(2, 1, 1, 1), times(after_t), times(t))
    ratio, variance = likelihood.mean, likelihood.deviation.square()
    precision = 1 / after_s.square() + ratio.square() / variance
    mean = (after_a * x0 / after_s.square() + ratio * x / variance) / precision
    assert torch.allclose(step.mean, mean, atol=1e-4)
    assert torch.allclose(step.deviation, precision.rsqrt(), atol=1e-5)


@on_every_process
def test_noising_in_two_steps_is_noising_in_one(process, t, after_t):
    (a, s), (after_a, after_s) = (signal_and_noise(process, times(each)) for each in (t, after_t))
    second = noising(process, torch.ones(2, 1, 1, 1), times(after_t), times(t))
    assert torch.allclose(second.mean * after_a, a, atol=1e-6)
    variance = (second.mean * after_s).square() + second.deviation.square()
    assert torch.allclose(variance, s.square(), atol=1e-6)


def test_the_density_is_the_normal_one():
    mean, x, deviation = draw(5), draw(6), torch.tensor([0.3, 2.0]).view(2, 1, 1, 1)
    normal = torch.distributions.Normal(mean, deviation.expand_as(mean))
    by_torch = normal.log_prob(x).flatten(1).mean(dim=1)
    assert torch.allclose(DiagonalGaussian(mean, deviation).log_density(x), by_torch)


@on_every_process
def test_the_balance_of_a_perfect_denoiser_is_the_ratio_of_noise(process, t, after_t):
    x0, noise = draw(7, 400), draw(8, 400)
    t, after_t = times(t, 400), times(after_t, 400)
    x = process.noise(x0, noise, t)
    step = ancestral_step(process, process.target(x0, noise, t), x, t, after_t, 1.0)
    after = step.mean + step.deviation * draw(9, 400)
    backward = noising(process, after, after_t, t)
    balance = (step.log_density(after) - backward.log_density(x)).mean()
    (_, s), (_, after_s) = signal_and_noise(process, t), signal_and_noise(process, after_t)
    assert balance == pytest.approx((s / after_s).log().mean().item(), abs=0.01)


def test_the_noise_of_a_flow_is_flow_grpo_s_in_small_steps():
    """Level 0.7 of the official code, ``0.7 sqrt(s / (1 - s)) sqrt(dt)``."""
    x = torch.zeros(1, 4, 8, 8)
    for s in (0.2, 0.6, 0.9):
        t, after_t = torch.tensor([1000 * s]), torch.tensor([1000 * s - 1])
        step = ancestral_step(RectifiedFlow(), x, x, t, after_t, 0.7 / math.sqrt(2))
        level = 0.7 * math.sqrt(s / (1 - s)) * math.sqrt(1e-3)
        assert step.deviation.item() == pytest.approx(level, rel=0.02)


@pytest.mark.parametrize("family", [TinyBackbone, TinyFlux])
def test_a_rollout_falls_from_noise_and_depends_on_its_seed_alone(family):
    model = family()
    conditioning = model.encode(["a cat", "a dog"])
    options = {"steps": 4, "guidance": 3.0, "eta": 1.0}
    both = list(ancestral_rollout(model, conditioning, [1, 2], **options))
    alone = list(ancestral_rollout(model, conditioning[1:], [2], **options))
    every = stochastic_times(model, 4)
    assert (every.diff() < 0).all()
    assert len(both) == len(every) - 1
    assert (signal_and_noise(model.process, every)[1] > 0).all()
    for step, single in zip(both, alone, strict=True):
        assert torch.allclose(step.after[1:], single.after, atol=1e-4)
        assert torch.isfinite(step.log_density).all()
    assert not torch.allclose(both[-1].after[0], both[-1].after[1])
