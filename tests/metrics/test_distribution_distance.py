import math

import pytest
import torch

from erasure_lightning.metrics.distribution_distance import Frechet, Kernel


def gaussian(mean, deviation, count=20000, width=2, seed=0):
    """Features whose mean and covariance are what was asked for, exactly."""
    x = torch.randn(
        count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    x = x - x.mean(dim=0)
    x = x @ torch.linalg.inv(torch.linalg.cholesky(x.T.cov())).T
    return x * torch.tensor(deviation, dtype=torch.float64) + torch.tensor(
        mean, dtype=torch.float64
    )


def measured(metric, drawn, reference, seeds=None):
    metric.refer(reference)
    metric.update(drawn, list(range(len(drawn))) if seeds is None else seeds)
    return metric.compute()


def test_frechet_of_two_gaussians_is_the_closed_formula():
    # |m - m'|^2 + sum of (s - s')^2 where the covariances are diagonal
    found = measured(
        Frechet(), gaussian([1.0, -2.0], [3.0, 0.5]), gaussian([0.0, 0.0], [1.0, 2.0], seed=1)
    )
    assert found.mean == pytest.approx(1 + 4 + (3 - 1) ** 2 + (2 - 0.5) ** 2, abs=1e-6)
    assert found.low < found.mean < found.high


def test_frechet_of_a_set_and_itself_is_nothing():
    x = gaussian([1.0, 2.0, 3.0], [1.0, 2.0, 0.5], count=500, width=3)
    found = measured(Frechet(), x, x)
    assert found.mean == pytest.approx(0, abs=1e-6)
    assert found.low == 0


def test_kernel_is_what_its_definition_says():
    x, y = torch.rand(5, 3, dtype=torch.float64), torch.rand(5, 3, dtype=torch.float64)

    def k(a, b):
        return (a @ b / 3 + 1) ** 3

    own = [sum(k(s[i], s[j]) for i in range(5) for j in range(5) if i != j) / 20 for s in (x, y)]
    across = sum(k(a, b) for a in x for b in y) / 25
    assert Kernel.distance(x, y) == pytest.approx(float(own[0] + own[1] - 2 * across), abs=1e-12)


def test_kernel_of_sets_of_one_kind_is_nothing_on_average():
    generator = torch.Generator().manual_seed(0)
    found = [
        Kernel.distance(*torch.randn(2, 40, 4, generator=generator, dtype=torch.float64))
        for _ in range(100)
    ]
    mean, error = torch.tensor(found).mean(), torch.tensor(found).std() / math.sqrt(100)
    assert abs(mean) < 3 * error  # unbiased: a biased estimate would be several errors above
    assert min(found) < 0
    moved = torch.randn(2, 40, 4, generator=generator, dtype=torch.float64) + torch.tensor(
        [[[0.0]], [[2.0]]]
    )
    assert Kernel.distance(*moved) > 10 * abs(mean) + 1


@pytest.mark.parametrize("kind", [Frechet, Kernel])
def test_the_interval_holds_the_truth_about_as_often_as_it_says(kind):
    generator = torch.Generator().manual_seed(0)
    reference = torch.randn(300, 2, generator=generator, dtype=torch.float64)

    def drawn(count):
        return 3 + 2 * torch.randn(count, 2, generator=generator, dtype=torch.float64)

    truth = kind.distance(drawn(5000), reference)
    found = [measured(kind(), drawn(300), reference) for _ in range(40)]
    assert sum(f.low <= truth <= f.high for f in found) >= 34
    assert sum(f.low <= 1.3 * truth <= f.high for f in found) < 20


@pytest.mark.parametrize("kind", [Frechet, Kernel])
def test_two_ranks_find_what_one_finds(kind):
    drawn, reference = torch.rand(24, 3), torch.rand(24, 3) + 0.5
    whole = measured(kind(), drawn, reference)
    ranks = [kind() for _ in range(2)]
    for rank, metric in enumerate(ranks):
        metric.refer(reference[rank::2])
        metric.update(drawn[rank::2], list(range(24))[rank::2])
    ranks[0].merge_state(ranks[1])
    together = ranks[0].compute()
    assert together.mean == pytest.approx(whole.mean, abs=1e-5)
    assert (together.low, together.high) == pytest.approx((whole.low, whole.high), abs=1e-5)


def test_pictures_of_one_seed_are_left_out_together():
    x = torch.rand(12, 2)
    alone, paired = (
        measured(Frechet(), x, torch.rand(12, 2), seeds)
        for seeds in (list(range(12)), [i // 2 for i in range(12)])
    )
    assert (alone.seeds, paired.seeds) == (12, 6)
    assert alone.mean == pytest.approx(paired.mean, rel=0.9)
