import math

import pytest
import torch

from erasure_lightning.seeding import derive_seed
from erasure_lightning.training.optimizers import rate_factor
from erasure_lightning.training.prompt_states import aligned_positions, cosine_matrix
from erasure_lightning.training.regression import Regression


def remap(weights, sources, images, retained, ridge):
    """Linear maps of one input, edited so that ``sources`` come out as ``images`` did."""
    equations = Regression(sources.new_zeros(sources.shape[1], sources.shape[1]))
    equations.redirect(sources, images)
    equations.keep(retained)
    return equations.solve(weights, ridge)


def test_mix_keeps_neighbours_apart():
    assert len({derive_seed(a, b) for a in range(50) for b in range(50)}) == 2500
    assert derive_seed(1, 2) == derive_seed(1, 2) != derive_seed(2, 1)


def test_cosine_schedule_rises_then_falls():
    factor = rate_factor("cosine", 4, 12)
    assert [factor(i) for i in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert factor(4) == 1.0
    assert math.isclose(factor(8), 0.5)
    assert factor(12) == factor(99) == 0.0


def test_relations_are_cosines():
    a = torch.randn(3, 5)
    assert torch.allclose(cosine_matrix(a, a).diagonal(), torch.ones(3), atol=1e-6)
    assert torch.allclose(cosine_matrix(a, -2 * a), -cosine_matrix(a, a), atol=1e-6)


@pytest.mark.parametrize(
    ("concept", "anchor", "expected"),
    [
        ((2, 3), (2, 3), [0, 1, 2, 3, 4, 5]),
        ((2, 4), (2, 3), [0, 1, 2, 2, 3, 4]),
        ((2, 3), (2, 4), [0, 1, 2, 4, 5, 5]),
        ((1, 4), (1, 3), [0, 1, 1, 2, 3, 4]),
        ((2, 3), (2, 2), [0, 1, 2, 2, 3, 4]),
    ],
)
def test_aligned_sets_span_on_span_and_end_on_end(concept, anchor, expected):
    assert aligned_positions(torch.tensor([concept]), torch.tensor([anchor]), 6).tolist() == [
        expected
    ]


class TestRemap:
    def objective(self, w, old, k, a, p, ridge):
        gaps = (
            (w @ k.T - old @ a.T).square().sum(),
            ((w - old) @ p.T).square().sum(),
            (w - old).square().sum(),
        )
        return gaps[0] + gaps[1] + ridge * gaps[2]

    def test_is_the_minimiser(self):
        old = torch.randn(6, 8, dtype=torch.double)
        k, a, p = (torch.randn(n, 8, dtype=torch.double) for n in (3, 3, 5))
        (w,) = remap([old], k, a, p, 0.3)
        w.requires_grad_(True)
        gradient = torch.autograd.grad(self.objective(w, old, k, a, p, 0.3), w)[0]
        assert gradient.abs().max() < 1e-10

    def test_nothing_to_erase_leaves_everything(self):
        old = torch.randn(6, 8)
        assert torch.equal(remap([old], old[:0], old[:0], torch.randn(5, 8), 0.1)[0], old)

    def test_the_order_of_concepts_does_not_matter(self):
        old, k, a, p = torch.randn(6, 8), torch.randn(4, 8), torch.randn(4, 8), torch.randn(5, 8)
        turned = remap([old], k.flip(0), a.flip(0), p, 0.1)[0]
        assert torch.allclose(remap([old], k, a, p, 0.1)[0], turned, atol=1e-6)


def test_moments_say_the_same_as_rows():
    k, a, p = (torch.randn(n, 8, dtype=torch.double) for n in (3, 3, 5))
    rows, moments = Regression(torch.zeros(8, 8)), Regression(torch.zeros(8, 8))
    rows.redirect(k, a, 0.7)
    rows.keep(p, 0.4)
    moments.expect(k.T @ k, a.T @ k, 0.7)
    moments.hold(p.T @ p, 0.4)
    assert torch.allclose(rows.correction(0.1), moments.correction(0.1))
    assert rows.correction(0.1).abs().max() > 0.01


@pytest.mark.parametrize("count", [0, 3, 5, 20])
def test_few_rows_and_many_come_to_the_same(count):
    k, a, p = (torch.randn(n, 8, dtype=torch.double) for n in (count, count, 5))
    weights = [torch.randn(6, 8), torch.randn(3, 8, dtype=torch.double)]
    rows, moments = Regression(p.T @ p), Regression(p.T @ p)
    for i in range(0, count, 2):
        rows.redirect(k[i : i + 2], a[i : i + 2], 0.7)
    moments.expect(k.T @ k, a.T @ k, 0.7)
    for new, target, old in zip(
        rows.solve(weights, 0.1), moments.solve(weights, 0.1), weights, strict=True
    ):
        assert torch.allclose(new, target, atol=1e-6 if new.dtype == torch.float else 1e-12)
        assert new.dtype == old.dtype
        assert torch.equal(new, old) == (count == 0)
