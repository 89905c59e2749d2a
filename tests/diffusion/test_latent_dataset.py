"""`LatentDataset`: images generated once, noised anew for every batch."""

import torch

from erasure_lightning.backbones.tiny import TinyBackbone
from erasure_lightning.diffusion.latent_dataset import LatentDataset
from erasure_lightning.diffusion.sampling import sample_latents

PROMPTS = ["a cat", "a dog", "a star"]


def latent_dataset(backbone=None, seed=0, prompts=PROMPTS):
    return LatentDataset(backbone or TinyBackbone(), prompts, seed, steps=2, guidance=3.0)


def test_images_are_those_of_the_one_sampling_loop():
    backbone = TinyBackbone()
    generator = torch.Generator().manual_seed(5)
    seeds = torch.randint(2**31, (3,), generator=generator).tolist()
    assert torch.equal(
        latent_dataset(backbone, 5).latents,
        sample_latents(backbone, PROMPTS, seeds, steps=2, guidance=3.0),
    )


def test_a_seed_draws_them_again_and_another_does_not():
    assert torch.equal(latent_dataset().latents, latent_dataset().latents)
    assert not torch.allclose(latent_dataset().latents, latent_dataset(seed=1).latents)


def test_images_are_of_the_size_and_after_the_first_seeds(tiny):
    generator = torch.Generator().manual_seed(5)
    seeds = torch.randint(2**31, (5,), generator=generator)[2:].tolist()
    settings = {"steps": 1, "guidance": 1.0, "size": (24, 16)}
    dataset = LatentDataset(tiny, PROMPTS, 5, first=2, **settings)
    assert dataset.latents.shape == (3, 4, 12, 8)
    assert torch.equal(dataset.latents, sample_latents(tiny, PROMPTS, seeds, **settings))


def test_more_than_a_batch_is_drawn_in_order():
    whole = latent_dataset(prompts=PROMPTS * 6).latents
    assert len(whole) == 18
    assert torch.allclose(whole[:3], latent_dataset().latents, atol=1e-5)


def test_noise_and_target_belong_to_the_image():
    for prediction in ("epsilon", "velocity"):
        dataset = latent_dataset(TinyBackbone(prediction=prediction))
        x, t, target = dataset.noised([2, 0])
        clean = dataset.process.clean(target, x, t)
        assert torch.allclose(clean, dataset.latents[[2, 0]], atol=1e-3)
        assert not torch.allclose(x, dataset.latents[[2, 0]], atol=1e-2)
