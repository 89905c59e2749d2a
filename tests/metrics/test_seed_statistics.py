import math

import pytest
import torch
from torch import distributed, multiprocessing

from erasure_lightning.distributed.collectives import all_gather_items
from erasure_lightning.metrics.estimates import Estimate
from erasure_lightning.metrics.seed_statistics import (
    CandidateLabels,
    MeanCosine,
    PixelDistance,
    RecognitionRate,
    SeedMean,
    t_quantile,
)

LABELS = torch.eye(3)


def test_the_interval_is_students_over_the_seeds_means():
    metric = SeedMean([7, 9, 11])
    metric.update(torch.tensor([0.2, 0.4, 0.6]), [7, 9, 11])
    metric.update(torch.tensor([0.4]), [7])
    estimate = metric.compute()
    means = torch.tensor([0.3, 0.4, 0.6])
    half = 4.302653 * float(means.std()) / math.sqrt(3)
    assert estimate == pytest.approx(
        (float(means.mean()), float(means.mean()) - half, float(means.mean()) + half, 3, 4)
    )


def test_the_interval_stays_inside_the_range():
    metric = SeedMean(range(2))
    metric.update(torch.tensor([1.0, 0.9]), [0, 1])
    assert metric.compute().high == 1
    assert metric.compute().low > 0


def test_a_share_is_not_rounded_to_single_precision():
    """Nine of ten reach a threshold of 0.9."""
    metric = SeedMean([0])
    metric.update(torch.tensor([1.0] * 9 + [0.0]), [0] * 10)
    assert metric.compute().mean >= 0.9


def test_one_seed_tells_nothing_of_the_interval():
    metric = SeedMean(range(3))
    metric.update(torch.tensor([0.5]), [2])
    assert metric.compute() == Estimate(0.5, 0.0, 1.0, 1, 1)


def test_nothing_measured_is_no_number():
    with pytest.warns(UserWarning, match="before the ``update``"):
        assert math.isnan(SeedMean(range(3)).compute().mean)


@pytest.mark.parametrize(
    ("freedom", "quantile"), [(1, 12.7062), (4, 2.7764), (31, 2.0395), (40, 2.0211), (120, 1.9799)]
)
def test_quantiles_of_student(freedom, quantile):
    assert t_quantile(freedom) == pytest.approx(quantile, abs=5e-5)


def test_no_degree_of_freedom_has_no_interval():
    assert t_quantile(0) == math.inf


def test_a_perfect_picture_counts_and_a_wrong_one_does_not():
    question = CandidateLabels(LABELS, torch.tensor([True, False, True]))
    for shown, share in ((0, 1.0), (1, 0.0), (2, 1.0)):
        metric = RecognitionRate(range(2))
        metric.update(LABELS[[shown, shown]], [question, question], [0, 1])
        assert metric.compute().mean == share


def test_cosines():
    metric = MeanCosine(range(2))
    metric.update(
        torch.tensor([[3.0, 0.0], [0.0, 2.0]]), torch.tensor([[1.0, 0.0], [0.0, -1.0]]), [0, 1]
    )
    assert metric.compute().mean == 0
    assert metric.compute().low == -1


def test_pixel_distance():
    metric = PixelDistance([0])
    metric.update(torch.ones(2, 3, 4, 4), torch.full((2, 3, 4, 4), 0.75), [0, 0])
    assert metric.compute().mean == 0.25


def _measure(rank, ranks, folder):
    """Every rank its share of the same eight pictures; one rank alone meets the seed 5."""
    if ranks > 1:
        torch.set_num_threads(1)  # A forked child must not touch the parent's pool of threads.
        distributed.init_process_group(
            "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=ranks
        )
    values, seeds = torch.linspace(0, 1, 8), [0, 1, 0, 1, 0, 1, 0, 5]
    mean, recognized = SeedMean([0, 1, 5]), RecognitionRate([0, 1, 5])
    for i in range(rank, 8, ranks):
        mean.update(values[i : i + 1], seeds[i : i + 1])
        recognized.update(
            LABELS[[i % 3]],
            [CandidateLabels(LABELS, torch.tensor([True, False, False]))],
            seeds[i : i + 1],
        )
    torch.save(
        (mean.compute(), recognized.compute(), sorted(all_gather_items([rank]))),
        f"{folder}/{ranks}-{rank}.pt",
    )


def test_two_ranks_give_the_numbers_of_one(tmp_path):
    multiprocessing.start_processes(_measure, (2, tmp_path), nprocs=2, start_method="fork")
    _measure(0, 1, tmp_path)
    (alone, hits, _), *pair = [
        torch.load(tmp_path / f"{n}.pt", weights_only=False) for n in ("1-0", "2-0", "2-1")
    ]
    for mean, recognized, ranks in pair:
        assert mean == pytest.approx(alone)
        assert recognized == pytest.approx(hits)
        assert ranks == [0, 1]
