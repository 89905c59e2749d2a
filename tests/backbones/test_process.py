import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler

from erasure_lightning.backbones.process import Diffusion


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
    behind = process.alphas[t.ceil().long()]
    assert torch.allclose(((1 - alpha) / alpha).sqrt(), high, rtol=5e-3)
    assert ((alpha <= low + 1e-6) & (alpha >= behind - 1e-6)).all()
    whole = torch.tensor([0.0, 500.0, 999.0])
    assert torch.equal(process.alpha(whole), process.alphas[whole.long()])


def test_shares_and_times_undo_each_other(pair):
    process, _ = pair
    t = torch.tensor([0.0, 10.5, 999.0])
    assert torch.allclose(process.at(process.share(t)), t)
    assert process.at(torch.tensor(1.0)) == 999
    late = process.draw_times(500, density=lambda share: (share > 0.9).float())
    assert late.is_floating_point()
    assert process.share(late).min() > 0.9
