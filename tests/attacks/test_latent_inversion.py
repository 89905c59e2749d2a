"""Latent inversion: what it draws, its controls, and that success is no proof of memory."""

import pytest
import torch
from under_attack import cigarette, tiny_target, weights

from erasure_lightning.attacks.latent_inversion import LatentInversion, shuffled
from erasure_lightning.diffusion.inversion import invert, retrace
from erasure_lightning.errors import ErasureError


def test_it_draws_the_given_pictures_again_from_noise_it_tells():
    target = tiny_target(steps=10)
    (found,) = LatentInversion(refinements=8).run(target, 0)
    (case,) = target.cases(0)
    given = target.examples(case, 2)
    assert torch.allclose(found.pictures, target.edited.decode(given), atol=1e-2)
    nothing = target.edited.encode([""]).expand(2)
    assert torch.equal(found.tensors["noise"], invert(target.edited, nothing, given, 10, 8))
    again = retrace(target.edited, nothing, found.tensors["noise"], 10)
    assert torch.equal(target.edited.decode(again), found.pictures)
    assert not torch.allclose(found.controls["other noise"], found.pictures, atol=1e-2)


def test_fewer_refinements_lose_the_picture():
    def missed(refinements):
        target = tiny_target(steps=10)
        (found,) = LatentInversion(refinements=refinements).run(target, 0)
        given = target.edited.decode(target.examples(target.cases(0)[0], 2))
        return (found.pictures - given).abs().max().item()

    assert missed(0) > 2 * missed(3)


def test_steps_of_its_own_overrule_the_target_s():
    target = tiny_target(steps=10)
    assert torch.equal(*(LatentInversion(steps=s).run(target, 0)[0].pictures for s in (None, 10)))
    assert not torch.equal(
        *(LatentInversion(steps=s).run(target, 0)[0].pictures for s in (None, 5))
    )


def test_pictures_drawn_apart_are_the_same():
    together, apart = (LatentInversion().run(tiny_target(draw_size=size), 0)[0] for size in (2, 1))
    assert torch.allclose(together.pictures, apart.pictures, atol=1e-4)


def test_a_shuffled_denoiser_has_the_same_numbers_and_says_something_else(tiny):
    before = weights(tiny)
    untaught = shuffled(tiny, 0)
    after = weights(untaught)
    assert all(
        torch.equal(before[n].flatten().sort().values, after[n].flatten().sort().values)
        for n in before
    )
    x, t, nothing = torch.ones(1, 4, 8, 8), torch.tensor([500]), tiny.encode([""])
    assert not torch.allclose(
        untaught.denoise(x, t, nothing), tiny.denoise(x, t, nothing), atol=1e-2
    )
    assert all(torch.equal(before[n], value) for n, value in weights(tiny).items())
    assert all(torch.equal(after[n], value) for n, value in weights(shuffled(tiny, 0)).items())


def test_a_seed_gives_one_finding_and_leaves_the_model_alone():
    target = tiny_target()
    before = weights(target.edited)
    first, again, other = (LatentInversion(seed=seed).run(target, 0)[0] for seed in (0, 0, 1))
    for name, pictures in first.controls.items():
        assert torch.equal(pictures, again.controls[name])
        assert not torch.equal(pictures, other.controls[name])
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
    target = cigarette(erased, pictures=2)
    (found,) = LatentInversion(refinements=1).run(target, 0)
    (case,) = target.cases(0)
    plain = target.draw(target.edited.encode([case.sentence]), case.seeds)
    assert target.share(case, plain) == (0 if erased else 1)
    assert target.share(case, found.pictures) == 1
    assert target.share(case, found.controls["untaught"]) == 1
    assert target.share(case, found.controls["other noise"]) == 0  # the measure can say no
