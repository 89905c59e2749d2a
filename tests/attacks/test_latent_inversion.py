"""Latent inversion: its images and controls, and that success is no proof of memory."""

import pytest
import torch
from under_attack import cigarette, tiny_target, weights

from erasure_lightning.attacks.latent_inversion import LatentInversion
from erasure_lightning.backbones.tiny import TinyFlux
from erasure_lightning.diffusion.inversion import invert, retrace
from erasure_lightning.errors import ErasureError


def test_it_regenerates_the_images_from_the_noise_it_returns():
    target = tiny_target(steps=10)
    (result,) = LatentInversion(refinements=8).run(target, 0)
    (case,) = target.cases(0)
    latents = target.examples(case, 2)
    assert torch.allclose(result.images, target.edited.decode(latents), atol=1e-2)
    unconditional = target.edited.encode([""]).expand(2)
    assert torch.equal(
        result.tensors["noise"], invert(target.edited, unconditional, latents, 10, 8)
    )
    again = retrace(target.edited, unconditional, result.tensors["noise"], 10)
    assert torch.equal(target.edited.decode(again), result.images)
    assert not torch.allclose(result.controls["other noise"], result.images, atol=1e-2)


def test_times_are_the_sampler_s_at_the_size_of_the_images():
    target = tiny_target(family=TinyFlux, image_size=32)
    evaluated = []
    denoise = target.edited.denoise
    target.edited.denoise = lambda x, t, *rest: evaluated.append(t.item()) or denoise(x, t, *rest)
    LatentInversion(refinements=0).run(target, 0)
    times, own = (target.edited.sampler(2, size).times.tolist() for size in (32, None))
    assert set(evaluated) == set(times)
    assert times != own  # the control


def test_fewer_refinements_lose_the_image():
    def missed(refinements):
        target = tiny_target(steps=10)
        (result,) = LatentInversion(refinements=refinements).run(target, 0)
        inverted = target.edited.decode(target.examples(target.cases(0)[0], 2))
        return (result.images - inverted).abs().max().item()

    assert missed(0) > 2 * missed(3)


def test_steps_of_its_own_overrule_the_target_s():
    target = tiny_target(steps=3)
    own, same, other = (
        LatentInversion(steps=s, refinements=0).run(target, 0)[0].images for s in (None, 3, 2)
    )
    assert torch.equal(own, same)
    assert not torch.equal(own, other)


def test_images_sampled_in_smaller_batches_are_the_same():
    together, apart = (
        LatentInversion().run(tiny_target(image_batch_size=size), 0)[0] for size in (2, 1)
    )
    assert torch.allclose(together.images, apart.images, atol=1e-4)


def test_equal_seeds_give_equal_results_and_the_model_is_not_modified():
    target = tiny_target()
    before = weights(target.edited)
    first, again, other = (LatentInversion(seed=seed).run(target, 0)[0] for seed in (0, 0, 1))
    for name, images in first.controls.items():
        assert torch.equal(images, again.controls[name])
        assert not torch.equal(images, other.controls[name])
    assert all(torch.equal(before[n], value) for n, value in weights(target.edited).items())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [({"steps": 0}, "steps of at least 1"), ({"refinements": -1}, "refinements of at least 0")],
)
def test_numbers_out_of_range(arguments, words):
    with pytest.raises(ErasureError, match=words):
        LatentInversion(**arguments)


@pytest.mark.slow
@pytest.mark.parametrize("erased", [False, True])
def test_cigarettes_come_back_and_just_as_well_from_a_network_that_knows_nothing(erased):
    pytest.importorskip("erasure_lightning_emoji_world")
    target = cigarette(erased, images=2)
    (result,) = LatentInversion(refinements=1).run(target, 0)
    (case,) = target.cases(0)
    plain = target.generate(target.edited.encode([case.prompt]), case.seeds)
    assert target.success_rate(case, plain) == (0 if erased else 1)
    assert target.success_rate(case, result.images) == 1
    assert target.success_rate(case, result.controls["shuffled"]) == 1
    assert target.success_rate(case, result.controls["other noise"]) == 0  # the measure can say no
