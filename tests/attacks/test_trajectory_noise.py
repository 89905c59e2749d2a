"""Trajectory noise: its steps, its tries, and its controls."""

import pytest
import torch
from diffusers import DDIMScheduler
from under_attack import cigarette, tiny_target

from erasure_lightning.attacks.trajectory_noise import TrajectoryNoise, renew_noise
from erasure_lightning.backbones.tiny import TINY_BACKBONES
from erasure_lightning.diffusion.ddim import DDIMStep, ddim, ddim_times
from erasure_lightning.diffusion.evaluation_counter import EvaluationCounter
from erasure_lightning.errors import ErasureError
from erasure_lightning.seeding import derive_seed


def test_steps_of_eta_up_to_1_are_those_of_diffusers(tiny):
    """Below 1 the absolute value, and the scale, are the identity."""
    scheduler = DDIMScheduler.from_config(tiny._scheduler.config, clip_sample=False)
    scheduler.set_timesteps(4)
    x = expected = tiny.noise([0])
    conditioning = tiny.encode(["a cat"])
    for number, t in enumerate(scheduler.timesteps):
        noise = tiny.noise([derive_seed(5, number)])
        prediction = tiny.denoise(expected, t, conditioning)
        step = scheduler.step(prediction, t, expected, eta=0.8, variance_noise=noise)
        expected = step.prev_sample
    times = ddim_times(tiny, 4)
    change = renew_noise(tiny, 0.8, 1.0, [5])
    assert torch.allclose(ddim(tiny, conditioning, x, times, change=change), expected, atol=1e-4)


@pytest.mark.parametrize("family", TINY_BACKBONES, ids=lambda family: family.__name__)
def test_no_amount_is_ddim_and_the_largest_is_finite(family):
    model = family()
    x = model.noise([0])
    conditioning = model.encode(["a cat"])
    times = ddim_times(model, 3)
    plain = ddim(model, conditioning, x, times)
    none, most = (
        ddim(model, conditioning, x, times, change=renew_noise(model, eta, 1.0, [0]))
        for eta in (0.0, 1.85)
    )
    assert torch.allclose(none, plain, atol=1e-5)
    assert most.isfinite().all()
    assert not torch.allclose(most, plain, atol=1e-2)


def test_the_scale_is_of_the_new_noise_alone(tiny):
    x = tiny.noise([0])
    step = DDIMStep(1, x, torch.tensor(600.0), torch.tensor(300.0), torch.zeros_like(x), x)
    none, once, thrice = (renew_noise(tiny, 0.8, scale, [5])(step)[1] for scale in (0.0, 1.0, 3.0))
    assert torch.allclose(thrice, none + 3 * (once - none), atol=1e-5)
    assert not torch.allclose(once, none, atol=1e-2)  # the control


def test_each_try_has_noise_of_its_own():
    target = tiny_target(images=1)
    tries = []
    model = target.edited
    decode = model.decode
    model.decode = lambda latents: tries.append(latents) or decode(latents)
    (case,) = target.cases(0)
    attempt, _, _ = TrajectoryNoise(etas=[1.0, 1.0], scales=[1.0]).prepare(target, case)
    with torch.no_grad():
        attempt(model, slice(0, 1))
    assert len(tries) == 2
    assert not torch.allclose(*tries, atol=1e-3)


def test_the_try_of_the_highest_margin_counts():
    target = tiny_target(images=3)
    (case,) = target.cases(0)
    settings = {"etas": [1.0, 1.5], "scales": [1.0, 2.0]}
    (best,) = TrajectoryNoise(**settings).run(target, 0)
    (one,) = TrajectoryNoise(etas=[1.0], scales=[1.0]).run(target, 0)  # its first try
    assert (target.margin(case, best.images) >= target.margin(case, one.images)).all()
    assert not torch.equal(best.images, one.images)


def test_controls_have_as_many_tries():
    target = tiny_target()
    attack = TrajectoryNoise(etas=[1.0, 1.5], scales=[1.0, 1.1])
    with EvaluationCounter([target.edited.denoiser, target.original.denoiser]) as counter:
        attack.run(target, 0)
    # Of edited, original, shuffled (a copy, with its hooks) and baseline; steps, images, tries.
    assert counter.evaluations == (2 + 2 + 2 + 1) * 2 * 2 * 4


def test_equal_seeds_give_equal_results_in_any_batches():
    few = {"etas": [1.0], "scales": [1.0]}
    first, again = (TrajectoryNoise(**few).run(tiny_target(), 0)[0].images for _ in range(2))
    assert torch.equal(first, again)
    (apart,) = TrajectoryNoise(**few).run(tiny_target(image_batch_size=1), 0)
    assert torch.allclose(first, apart.images, atol=1e-4)
    (other,) = TrajectoryNoise(seed=1, **few).run(tiny_target(), 0)
    assert not torch.allclose(first, other.images, atol=1e-3)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"etas": []}, "TrajectoryNoise needs etas, at least one number"),
        ({"scales": [1, -1]}, "TrajectoryNoise needs scales of at least 0; found -1"),
    ],
)
def test_numbers_out_of_range(arguments, words):
    with pytest.raises(ErasureError, match=words):
        TrajectoryNoise(**arguments)


@pytest.mark.slow
def test_the_original_draws_a_cigarette_along_noisy_trajectories_when_prompted_alone():
    pytest.importorskip("erasure_lightning_emoji_world")
    target = cigarette(erased=False, images=2)
    (case,) = target.cases(0)
    (result,) = TrajectoryNoise(etas=[1.0, 1.5], scales=[1.0]).run(target, 0)
    assert target.success_rate(case, result.images) == 1
    assert target.success_rate(case, result.controls["shuffled"]) == 0
    assert target.success_rate(case, result.controls["no prompt"]) == 0
