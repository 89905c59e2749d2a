import pytest
import torch
from diffusers import DDIMScheduler

from erasure_lightning.backbones.process import Diffusion, draw_times


@pytest.fixture(params=[("epsilon", "epsilon"), ("velocity", "v_prediction")])
def pair(request):
    ours, theirs = request.param
    scheduler = DDIMScheduler(prediction_type=theirs, clip_sample=False)
    return Diffusion(scheduler.alphas_cumprod, ours), scheduler


def test_noising_is_what_diffusers_does(pair):
    process, scheduler = pair
    x0, noise, t = torch.randn(3, 4, 8, 8), torch.randn(3, 4, 8, 8), torch.tensor([0, 500, 999])
    assert torch.allclose(process.noise(x0, noise, t), scheduler.add_noise(x0, noise, t), atol=1e-6)


def test_a_perfect_prediction_gives_back_noise_and_clean_latents(pair):
    process, _ = pair
    x0, noise, t = torch.randn(3, 4, 8, 8), torch.randn(3, 4, 8, 8), torch.tensor([10, 500, 900])
    x, prediction = process.noise(x0, noise, t), process.target(x0, noise, t)
    assert torch.allclose(process.epsilon(prediction, x, t), noise, atol=1e-5)
    assert torch.allclose(process.clean(prediction, x, t), x0, atol=1e-4)


def test_removing_its_noise_leaves_the_clean_latents(pair):
    process, _ = pair
    x0, noise, t = torch.randn(3, 4, 8, 8), torch.randn(3, 4, 8, 8), torch.tensor([0, 500, 900])
    assert torch.allclose(process.remove(process.noise(x0, noise, t), noise, t), x0, atol=1e-4)


def test_velocity_target_is_what_diffusers_says():
    scheduler = DDIMScheduler(prediction_type="v_prediction")
    x0, noise, t = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8), torch.tensor([3, 700])
    ours = Diffusion(scheduler.alphas_cumprod, "velocity").target(x0, noise, t)
    assert torch.allclose(ours, scheduler.get_velocity(x0, noise, t), atol=1e-6)


def test_times_reach_from_the_first_to_the_last():
    process = Diffusion(DDIMScheduler(num_train_timesteps=10).alphas_cumprod, "epsilon")
    drawn = draw_times(process, 1000, torch.device("cpu"))
    assert set(drawn.tolist()) == set(range(10))
