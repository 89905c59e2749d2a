"""Low-rank factors of differences: their ranks, their error, and an edit's own factors."""

import pytest
import torch

from erasure_lightning.edits.changes import Change, LayerFactors, edit_factors, low_rank

DIFFERENCE = torch.diag(torch.tensor([3.0, 2.0, 1.0]))
LAYER = "unet.layer"


def changes(difference=DIFFERENCE, **others):
    """Of a layer's weight, and of other parameters by their names in it."""
    each = {"weight": difference} | others
    return {f"{LAYER}.{name}": Change(torch.ones_like(d), 1 + d) for name, d in each.items()}


@pytest.mark.parametrize(
    ("energy", "rank"), [(0.64, 1), (0.65, 2), (0.92, 2), (0.93, 3), (None, 3), (1.0, 3)]
)
def test_the_rank_is_the_least_that_retains_the_energy(energy, rank):
    """Squares of the singular values are 9, 4 and 1: shares of 0.643 and 0.929."""
    lowered = low_rank(changes(), {}, energy=energy)
    assert lowered.factors[LAYER].rank == rank


@pytest.mark.parametrize(("rank", "left", "lost"), [(1, 1, 5), (2, 2, 1), (9, 3, 0)])
def test_the_error_is_the_root_of_the_share_that_is_lost(rank, left, lost):
    lowered = low_rank(changes(), {}, rank=rank)
    assert lowered.factors[LAYER].rank == left
    assert lowered.error == pytest.approx((lost / 14) ** 0.5, abs=1e-6)
    residual = DIFFERENCE - lowered.factors[LAYER].product()
    assert residual.square().sum().item() == pytest.approx(lost, abs=1e-5)


def test_other_parameters_are_left_out_and_lost():
    lowered = low_rank(changes(bias=torch.tensor([2.0, 0.0])), {}, energy=1)
    assert lowered.left_out == [f"{LAYER}.bias"]
    assert lowered.error == pytest.approx((4 / 18) ** 0.5)


def test_a_convolution_is_factored_too():
    kernel = torch.randn(4, 3, 2, 2)
    factors = low_rank(changes(kernel), {}, energy=1).factors[LAYER]
    assert factors.down.shape == (4, 3, 2, 2)
    assert torch.allclose(factors.product(), kernel, atol=1e-5)


def test_an_edit_s_own_factors_are_taken_as_they_are():
    down, up = torch.randn(2, 3), torch.randn(3, 2)
    tensors = {f"{LAYER}.lora_A.weight": down, f"{LAYER}.lora_B.weight": up}
    own = edit_factors(tensors, 0.5)
    assert torch.allclose(own[LAYER].product(), 0.5 * up @ down)
    lowered = low_rank(changes(0.5 * up @ down), own, rank=1)
    assert lowered.factors == own
    assert lowered.error == 0


def test_a_strength_is_applied_once():
    factors = LayerFactors(torch.ones(1, 2), torch.ones(3, 1))
    assert torch.equal(factors.scaled(0.25).product(), torch.full((3, 2), 0.25))
