"""Inversion from an image to noise and back, and purification, with controls."""

import copy

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, PNDMScheduler
from recognition import named
from under_attack import cigarette

from erasure_lightning.backbones.process import Diffusion
from erasure_lightning.backbones.tiny import TinyBackbone, TinyFlux, TinySD3
from erasure_lightning.diffusion.inversion import invert, purify_images, retrace
from erasure_lightning.diffusion.sampling import sample_images, sample_latents
from erasure_lightning.errors import ErasureError
from erasure_lightning.metrics.drift import psnr


@pytest.fixture(params=["epsilon", "velocity"])
def either(request):
    return TinyBackbone(prediction=request.param)


def lost(model, refinements, steps=20):
    """Root mean square of what the round trip changes in latents of size 1."""
    x0 = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    conditioning = model.encode(["a cat", ""])
    back = retrace(model, conditioning, invert(model, conditioning, x0, steps, refinements), steps)
    return (back - x0).square().mean().sqrt().item()


def test_the_way_to_noise_and_back_ends_where_it_began(either):
    assert lost(either, 8) < 1e-3


def test_every_refinement_brings_it_nearer(either):
    gaps = [lost(either, refinements, steps=10) for refinements in (0, 1, 3)]
    assert gaps[0] > 2 * gaps[1]
    assert gaps[1] > 2 * gaps[2]


def test_other_samplers_are_replaced_by_ddim_in_both_directions():
    model = TinyBackbone(prediction="velocity")
    model._scheduler = PNDMScheduler.from_config(model._scheduler.config, skip_prk_steps=True)
    assert len(model.sampler(10).times) == 11  # it asks at one time twice
    assert lost(model, 8, steps=10) < 1e-3


def zero_terminal(prediction, sampler=DDIMScheduler):
    """A model whose noisiest latents hold no image; DPM's sampler writes the ratio as 2**-24."""
    model = TinyBackbone(prediction=prediction)
    changes = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    model._scheduler = sampler.from_config(model._scheduler.config, **changes)
    model.process = Diffusion(model._scheduler.alphas_cumprod, prediction)
    return model


@pytest.mark.parametrize("sampler", [DDIMScheduler, DPMSolverMultistepScheduler])
def test_the_way_begins_and_ends_where_latents_hold_nothing_but_noise(sampler):
    model = zero_terminal("velocity", sampler)
    assert model.process.alphas[-1] < 1e-7
    assert model.sampler(10).times[0] == 999
    gaps = [lost(model, refinements, steps=10) for refinements in (0, 2, 8)]
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[-1] < 1e-3


@pytest.mark.parametrize("family", [TinyFlux, TinySD3])
@pytest.mark.parametrize("steps", [1, 2, 3, 10])
def test_a_flow_of_one_velocity_is_inverted_without_a_refinement(family, steps, monkeypatch):
    model = family()
    x0, velocity = torch.randn(2, 2, 4, 8, 8).unbind()
    monkeypatch.setattr(model, "denoise", lambda x, t, conditioning, guidance=None: velocity)
    conditioning = model.encode(["a cat", ""])
    noise = invert(model, conditioning, x0, steps, refinements=0)
    assert torch.allclose(noise, x0 + velocity, atol=1e-4)
    assert torch.allclose(retrace(model, conditioning, noise, steps), x0, atol=1e-4)


@pytest.mark.parametrize("sampler", [DDIMScheduler, DPMSolverMultistepScheduler])
def test_noise_predicted_where_there_is_nothing_else_is_refused(sampler):
    with pytest.raises(
        ErasureError, match="TinyBackbone predicts the noise .* needs prediction_type v_prediction"
    ):
        lost(zero_terminal("epsilon", sampler), 1)


@pytest.mark.parametrize("which", ["original", "edited"])
def test_images_that_are_no_numbers_are_refused(which):
    models = {name: TinyBackbone() for name in ("original", "edited")}
    next(models[which].text_encoders.parameters()).data.fill_(float("nan"))
    words = (
        f"The {which} model TinyBackbone generates NaN or infinity for 'a cat' with DDIM inversion"
    )
    with pytest.raises(ErasureError, match=words):
        purify_images(
            models["original"], models["edited"], torch.rand(1, 3, 16, 16), ["a cat"], steps=2
        )


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_from_noise_it_goes_the_way_of_sampling(either, guidance):
    prompts = ["a cat", "a dog"]
    seeds = [1, 2]
    there = sample_latents(either, prompts, seeds, steps=5, guidance=guidance)
    rollout = retrace(either, either.encode(prompts), either.noise(seeds), 5, guidance)
    assert torch.allclose(rollout, there, atol=1e-4)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_an_edit_of_nothing_purifies_nothing(either, guidance):
    images = torch.rand(2, 3, 16, 16)
    result = purify_images(
        either, copy.deepcopy(either), images, ["a cat", ""], steps=10, guidance=guidance
    )
    assert torch.allclose(result.purified, result.reconstructed, atol=1e-4)


def test_another_model_draws_another_image(tiny):
    result = purify_images(tiny, TinyBackbone(seed=1), torch.rand(1, 3, 16, 16), ["a cat"], steps=5)
    assert not torch.allclose(result.purified, result.reconstructed, atol=1e-2)


def test_an_edit_of_the_text_encoder_purifies_too(tiny):
    edited = copy.deepcopy(tiny)
    for parameter in edited.text_encoders.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    result = purify_images(tiny, edited, torch.rand(1, 3, 16, 16), ["a cat"], steps=3)
    assert not torch.allclose(result.purified, result.reconstructed, atol=1e-4)


ERASED = ["cigarette"] * 2
RETAINED = ["fox", "guitar"]


def purified(target, words):
    """Images of ``a WORD`` from the original, and their purification under that caption."""
    prompts = [f"a {word}" for word in words]
    seeds = range(10, 10 + len(words))
    images = sample_images(target.original, prompts, seeds, steps=10, guidance=4.0)
    return images, purify_images(target.original, target.edited, images, prompts, steps=10)


@pytest.mark.slow
def test_a_cigarette_is_purified_and_the_rest_comes_back():
    pytest.importorskip("erasure_lightning_emoji_world")
    target = cigarette()
    world = target.original.world
    (_, cigarettes) = purified(target, ERASED)
    (_, rest) = purified(target, RETAINED)
    assert named(world, cigarettes.reconstructed, ERASED) == 1
    assert named(world, cigarettes.purified, ERASED) == 0
    assert psnr(cigarettes.purified, cigarettes.reconstructed).max() < 20
    assert named(world, rest.purified, RETAINED) == named(world, rest.reconstructed, RETAINED) == 1
    assert psnr(rest.purified, rest.reconstructed).min() > 25


@pytest.mark.slow
def test_the_same_measure_finds_cigarettes_after_an_edit_that_does_nothing():
    pytest.importorskip("erasure_lightning_emoji_world")
    target = cigarette(erased=False)
    inputs, result = purified(target, ERASED)
    assert named(target.original.world, result.purified, ERASED) == 1
    compressed = target.original.decode(target.original.compress(inputs))
    # The round trip loses no more than the autoencoder.
    assert psnr(result.purified, compressed).min() > 40
