import itertools

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler

from erasure_lightning.backbones.process import Diffusion, RectifiedFlow


@pytest.fixture(params=[("epsilon", "epsilon"), ("velocity", "v_prediction")])
def pair(request):
    ours, theirs = request.param
    scheduler = DDIMScheduler(prediction_type=theirs, clip_sample=False)
    return Diffusion(scheduler.alphas_cumprod, ours), scheduler


def test_noising_is_what_diffusers_does(pair):
    process, scheduler = pair
    x0 = torch.randn(3, 4, 8, 8)
    noise = torch.randn(3, 4, 8, 8)
    t = torch.tensor([0, 500, 999])
    assert torch.allclose(process.noise(x0, noise, t), scheduler.add_noise(x0, noise, t), atol=1e-6)


def test_a_perfect_prediction_gives_back_noise_and_clean_latents(pair):
    process, _ = pair
    x0 = torch.randn(3, 4, 8, 8)
    noise = torch.randn(3, 4, 8, 8)
    t = torch.tensor([10, 500, 900])
    x = process.noise(x0, noise, t)
    prediction = process.target(x0, noise, t)
    assert torch.allclose(process.epsilon(prediction, x, t), noise, atol=1e-5)
    assert torch.allclose(process.clean(prediction, x, t), x0, atol=1e-4)


def test_removing_its_noise_leaves_the_clean_latents(pair):
    process, _ = pair
    x0 = torch.randn(3, 4, 8, 8)
    noise = torch.randn(3, 4, 8, 8)
    t = torch.tensor([0, 500, 900])
    assert torch.allclose(process.remove(process.noise(x0, noise, t), noise, t), x0, atol=1e-4)


def test_velocity_target_is_what_diffusers_says():
    scheduler = DDIMScheduler(prediction_type="v_prediction")
    x0 = torch.randn(2, 4, 8, 8)
    noise = torch.randn(2, 4, 8, 8)
    t = torch.tensor([3, 700])
    ours = Diffusion(scheduler.alphas_cumprod, "velocity").target(x0, noise, t)
    assert torch.allclose(ours, scheduler.get_velocity(x0, noise, t), atol=1e-6)


@pytest.fixture(params=["epsilon", "velocity", "flow"])
def process(request):
    if request.param == "flow":
        return RectifiedFlow()
    return Diffusion(DDIMScheduler().alphas_cumprod, request.param)


@pytest.mark.parametrize("space", ["native", "velocity", "epsilon", "sample"])
def test_errors_in_other_spaces_are_those_of_converted_predictions(process, space):
    x, one, other = torch.randn(3, 3, 4, 8, 8, dtype=torch.float64)
    t = torch.tensor([50.0, 500.0, 900.0])
    signal, noise = (
        process.noise(*scales, t)
        for scales in itertools.permutations((torch.ones_like(x), torch.zeros_like(x)))
    )

    def converted(prediction):
        epsilon, clean = process.epsilon(prediction, x, t), process.clean(prediction, x, t)
        if space == "velocity":
            is_flow = isinstance(process, RectifiedFlow)
            return epsilon - clean if is_flow else signal * epsilon - noise * clean
        return {"native": prediction, "epsilon": epsilon, "sample": clean}[space]

    errors = (converted(one) - converted(other)).abs()
    scale = process.error_scale(space, t).view(3, 1, 1, 1)
    assert torch.allclose(errors, scale * (one - other).abs(), rtol=1e-4)


class TestTimesOfAFlow:
    def test_are_above_0(self, monkeypatch):
        """Where latents are clean, they hold no noise to divide by."""
        monkeypatch.setattr(torch, "rand", torch.zeros)
        assert RectifiedFlow().draw_times(2).tolist() == [1000.0, 1000.0]

    def test_of_a_density_are_anywhere_in_its_cells(self):
        shares = []

        def density(share):
            shares.append(share)
            return ((share > 0.2) & (share < 0.202)).float()

        drawn = RectifiedFlow().draw_times(500, density)
        assert torch.allclose(shares[0][:2], torch.tensor([0.0005, 0.0015]))
        assert 200 < drawn.min() < 200.1
        assert 201.9 < drawn.max() <= 202


def test_times_reach_from_the_first_to_the_last():
    process = Diffusion(DDIMScheduler(num_train_timesteps=10).alphas_cumprod, "epsilon")
    drawn = process.draw_times(1000)
    assert set(drawn.tolist()) == set(range(10))


def test_between_two_times_the_noise_is_interpolated_as_euler_does(pair):
    process, scheduler = pair
    euler = EulerDiscreteScheduler.from_config(scheduler.config, timestep_spacing="linspace")
    euler.set_timesteps(7)
    t = euler.timesteps
    assert (t != t.round()).any()
    alpha = process.alpha(t)
    high = torch.tensor([float(v) for v in euler.sigmas[:-1]])
    low = process.alphas[t.floor().long()]
    later = process.alphas[t.ceil().long()]
    assert torch.allclose(((1 - alpha) / alpha).sqrt(), high, rtol=5e-3)
    assert ((alpha <= low + 1e-6) & (alpha >= later - 1e-6)).all()
    whole = torch.tensor([0.0, 500.0, 999.0])
    assert torch.equal(process.alpha(whole), process.alphas[whole.long()])


def test_between_two_times_the_logarithm_of_signal_to_noise_is_interpolated():
    process = Diffusion(DDIMScheduler(num_train_timesteps=10).alphas_cumprod, "epsilon")
    before, after = process.alphas[2:4].logit()
    alpha = process.alpha(torch.tensor(2.25))
    assert torch.allclose(alpha, (0.75 * before + 0.25 * after).sigmoid())
    assert not torch.allclose(alpha, (0.25 * before + 0.75 * after).sigmoid())  # the control


def test_shares_and_times_undo_each_other(pair):
    process, _ = pair
    t = torch.tensor([0.0, 10.5, 999.0])
    assert torch.allclose(process.at(process.share(t)), t)
    assert process.at(torch.tensor(1.0)) == 999
    late = process.draw_times(500, density=lambda share: (share > 0.9).float())
    assert late.is_floating_point()
    assert process.share(late).min() > 0.9
