import math

import pytest
import torch

from erasure_lightning.metrics.distribution_distance import FrechetDistance, KernelDistance


def gaussian(mean, deviation, count=20000, width=2, seed=0):
    """Features of exactly these means and standard deviations, without correlation."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, width, generator=generator, dtype=torch.float64)
    x = x - x.mean(dim=0)
    x = x @ torch.linalg.inv(torch.linalg.cholesky(x.T.cov())).T
    return x * torch.tensor(deviation).double() + torch.tensor(mean).double()


def measured(metric, generated, reference, seeds=None):
    metric.update_reference(reference)
    metric.update(generated, list(range(len(generated))) if seeds is None else seeds)
    return metric.compute()


def test_frechet_of_two_gaussians_is_the_closed_formula():
    # |m - m'|^2 + sum of (s - s')^2 where the covariances are diagonal
    generated = gaussian([1.0, -2.0], [3.0, 0.5])
    reference = gaussian([0.0, 0.0], [1.0, 2.0], seed=1)
    estimate = measured(FrechetDistance(), generated, reference)
    assert estimate.mean == pytest.approx(1 + 4 + (3 - 1) ** 2 + (2 - 0.5) ** 2, abs=1e-6)
    assert estimate.low < estimate.mean < estimate.high


def test_the_largest_seeds_count_as_small_ones():
    x, y = torch.randn(2, 6, 2).unbind()
    large = [2**64 - 1, 2**63, 2**63 - 1, 1, 0, 0]
    small = [5, 4, 3, 2, 1, 1]
    assert measured(KernelDistance(), x, y, large) == measured(KernelDistance(), x, y, small)
    assert measured(KernelDistance(), x, y, small) != measured(KernelDistance(), x, y)


def test_frechet_of_a_set_and_itself_is_zero():
    x = gaussian([1.0, 2.0, 3.0], [1.0, 2.0, 0.5], count=500, width=3)
    estimate = measured(FrechetDistance(), x, x)
    assert estimate.mean == pytest.approx(0, abs=1e-6)
    assert estimate.low == 0


def test_kernel_by_its_definition():
    x, y = torch.rand(5, 3, dtype=torch.float64), torch.rand(5, 3, dtype=torch.float64)

    def k(a, b):
        return (a @ b / 3 + 1) ** 3

    own = [sum(k(s[i], s[j]) for i in range(5) for j in range(5) if i != j) / 20 for s in (x, y)]
    across = sum(k(a, b) for a in x for b in y) / 25
    expected = float(own[0] + own[1] - 2 * across)
    assert KernelDistance.distance(x, y) == pytest.approx(expected, abs=1e-12)


def test_kernel_of_equal_distributions_is_zero_on_average():
    generator = torch.Generator().manual_seed(0)

    def pair():
        return torch.randn(2, 40, 4, generator=generator, dtype=torch.float64)

    distances = torch.tensor([KernelDistance.distance(*pair()) for _ in range(100)])
    mean = distances.mean()
    error = distances.std() / math.sqrt(100)
    assert abs(mean) < 3 * error  # unbiased: a biased estimate would be several errors above
    assert distances.min() < 0
    shifted = pair() + torch.tensor([[[0.0]], [[2.0]]])
    assert KernelDistance.distance(*shifted) > 10 * abs(mean) + 1


@pytest.mark.parametrize("kind", [FrechetDistance, KernelDistance])
def test_the_interval_has_about_its_nominal_coverage(kind):
    generator = torch.Generator().manual_seed(0)
    reference = torch.randn(300, 2, generator=generator, dtype=torch.float64)

    def generated(count):
        return 3 + 2 * torch.randn(count, 2, generator=generator, dtype=torch.float64)

    truth = kind.distance(generated(5000), reference)
    estimates = [measured(kind(), generated(300), reference) for _ in range(40)]
    assert sum(e.low <= truth <= e.high for e in estimates) >= 34
    assert sum(e.low <= 1.3 * truth <= e.high for e in estimates) < 20


@pytest.mark.parametrize("kind", [FrechetDistance, KernelDistance])
def test_two_ranks_equal_one(kind):
    generated, reference = torch.rand(24, 3), torch.rand(24, 3) + 0.5
    whole = measured(kind(), generated, reference)
    ranks = [kind() for _ in range(2)]
    for rank, metric in enumerate(ranks):
        metric.update_reference(reference[rank::2])
        metric.update(generated[rank::2], list(range(24))[rank::2])
    ranks[0].merge_state(ranks[1])
    together = ranks[0].compute()
    assert together.mean == pytest.approx(whole.mean, abs=1e-5)
    assert (together.low, together.high) == pytest.approx((whole.low, whole.high), abs=1e-5)


def test_images_of_one_seed_are_left_out_together():
    x = torch.rand(12, 2)
    alone, paired = (
        measured(FrechetDistance(), x, torch.rand(12, 2), seeds)
        for seeds in (list(range(12)), [i // 2 for i in range(12)])
    )
    assert (alone.seeds, paired.seeds) == (12, 6)
    assert alone.mean == pytest.approx(paired.mean, rel=0.9)
