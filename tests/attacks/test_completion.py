"""Completion: who takes which step, and what the latents already show."""

import pytest
import torch
from under_attack import cigarette, tiny_target

from erasure_lightning.attacks.completion import Completion
from erasure_lightning.diffusion.ddim import ddim, ddim_times
from erasure_lightning.diffusion.evaluation_counter import EvaluationCounter
from erasure_lightning.errors import ErasureError


def test_the_original_begins_and_the_edited_model_finishes():
    target = tiny_target(steps=4)
    (case,) = target.cases(0)
    (result,) = Completion(share=0.25).run(target, 0)
    times = ddim_times(target.edited, 4)

    def generate(model, x, times):
        conditioning = model.encode([case.prompt]).expand(2)
        return ddim(model, conditioning, x, times, target.guidance)

    begun = generate(target.original, target.edited.noise(case.seeds), times[:2])
    finished = generate(target.edited, begun, times[1:])
    assert torch.equal(result.images, target.edited.decode(finished))
    whole = generate(target.original, target.edited.noise(case.seeds), times)
    assert torch.equal(result.controls["original"], target.original.decode(whole))
    unconditional = ddim(target.edited, target.edited.unconditional(2), begun, times[1:])
    assert torch.equal(result.controls["no prompt"], target.edited.decode(unconditional))
    seen = ddim(target.original, target.original.unconditional(2), begun, times[[1, -1]])
    assert torch.equal(result.controls["visible"], target.original.decode(seen))


def test_at_a_share_of_0_the_edited_model_takes_every_step():
    target = tiny_target(steps=4)
    with EvaluationCounter([target.original.denoiser]) as counter:
        (result,) = Completion(share=0).run(target, 0)
    assert counter.evaluations == 2 * (2 * 4 + 1)  # of the controls `original` and `visible`
    (other,) = Completion(share=0.5).run(target, 0)
    assert not torch.equal(result.images, other.images)


def test_at_least_one_step_is_left():
    target = tiny_target(steps=4)
    late, last = (Completion(share=share).run(target, 0)[0].images for share in (0.75, 0.99))
    assert torch.equal(late, last)


def test_equal_seeds_give_equal_results():
    target = tiny_target()
    first, again = (Completion().run(target, 0)[0] for _ in range(2))
    assert torch.equal(first.images, again.images)
    assert all(torch.equal(first.controls[n], again.controls[n]) for n in first.controls)


@pytest.mark.parametrize("share", [-0.1, 1])
def test_a_share_out_of_range(share):
    with pytest.raises(ErasureError, match="Completion needs share of at least 0 and below 1"):
        Completion(share=share)


@pytest.mark.slow
def test_the_original_finishes_a_cigarette_and_a_shuffled_denoiser_does_not():
    pytest.importorskip("erasure_lightning_emoji_world")
    target = cigarette(erased=False, images=2)
    (case,) = target.cases(0)
    (result,) = Completion(share=0.1).run(target, 0)
    assert target.success_rate(case, result.images) == 1
    assert target.success_rate(case, result.controls["shuffled"]) == 0
