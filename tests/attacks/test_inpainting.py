"""Inpainting: the mask, the known latents, and what restores the middle."""

import pytest
import torch
from under_attack import cigarette, tiny_target

from erasure_lightning.attacks.inpainting import Inpainting, keep_known, middle_mask
from erasure_lightning.backbones.tiny import TINY_BACKBONES
from erasure_lightning.diffusion.ddim import ddim, ddim_times
from erasure_lightning.errors import ErasureError


def test_the_mask_is_in_the_middle():
    mask = middle_mask(torch.zeros(1, 4, 8, 6), 0.5)
    assert mask.sum() == 4 * 3
    assert mask[2:6, 1:4].all()
    assert middle_mask(torch.zeros(1, 4, 8, 6), 1.0).all()
    assert middle_mask(torch.zeros(1, 4, 8, 6), 1e-3).sum() == 1


@pytest.mark.parametrize("family", TINY_BACKBONES, ids=lambda family: family.__name__)
def test_known_latents_follow_the_noise_process_with_the_noise_of_the_start(family):
    model = family()
    known = torch.rand(1, *model.latent_shape())
    noise = model.noise([0])
    mask = middle_mask(known, 0.5)
    times = ddim_times(model, 4)
    change = keep_known(model.process, known, mask)
    # The start is pure noise, of which the first step takes the known latents to be a part.
    at_start = model.process.noise_in(noise, known, times[0])
    for steps in range(1, len(times)):
        x = ddim(model, model.encode(["a cat"]), noise, times[: steps + 1], change=change)
        expected = model.process.noise(known, at_start, times[steps])
        assert torch.allclose(x[..., ~mask], expected[..., ~mask], atol=1e-4)
        assert not torch.allclose(x[..., mask], expected[..., mask], atol=1e-2)


def test_what_is_visible_is_the_image_s():
    target = tiny_target()
    (case,) = target.cases(0)
    known = target.edited.decode(target.examples(case, 2))
    distance = [
        (Inpainting(side=side).run(target, 0)[0].images - known).abs().mean() for side in (0.1, 0.9)
    ]
    assert distance[0] < distance[1]


def test_a_mask_of_the_whole_image_leaves_a_plain_sampling():
    target = tiny_target()
    (case,) = target.cases(0)
    model = target.edited
    conditioning = model.encode([case.prompt]).expand(2)
    noise = model.noise(case.seeds)
    latents = ddim(model, conditioning, noise, ddim_times(model, target.steps), target.guidance)
    (result,) = Inpainting(side=1).run(target, 0)
    assert torch.allclose(result.images, model.decode(latents), atol=1e-5)


def test_equal_seeds_give_equal_results_and_the_model_is_not_modified():
    target = tiny_target()
    first, again = (Inpainting().run(target, 0)[0] for _ in range(2))
    assert torch.equal(first.images, again.images)
    assert all(torch.equal(first.controls[n], again.controls[n]) for n in first.controls)


@pytest.mark.parametrize("side", [0, 1.1])
def test_a_side_out_of_range(side):
    with pytest.raises(ErasureError, match="Inpainting needs side above 0"):
        Inpainting(side=side)


@pytest.mark.slow
def test_the_original_restores_a_cigarette_and_a_shuffled_denoiser_does_not():
    pytest.importorskip("erasure_lightning_emoji_world")
    target = cigarette(erased=False, images=2)
    (case,) = target.cases(0)
    (result,) = Inpainting(side=0.75).run(target, 0)
    assert target.success_rate(case, result.images) == 1
    assert target.success_rate(case, result.controls["shuffled"]) == 0
    assert target.success_rate(case, result.controls["no prompt"]) == 0
