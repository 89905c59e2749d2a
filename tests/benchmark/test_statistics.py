import numpy as np
import pytest

from erasure_lightning.benchmark.statistics import Interval, bootstrap, front, hypervolume, ranks


@pytest.mark.parametrize(
    ("values", "higher", "expected"),
    [
        ([0.9, 0.5, 0.7], True, [1, 3, 2]),
        ([0.9, 0.5, 0.7], False, [3, 1, 2]),
        ([1.0, 1.0, 0.0], True, [1.5, 1.5, 3]),
        ([0.0, 2.0, 2.0, 2.0, 5.0], False, [1, 3, 3, 3, 5]),
        ([0.3], True, [1]),
    ],
)
def test_ranks_share_places_where_values_tie(values, higher, expected):
    assert ranks(values, higher) == expected


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([(1, 0), (0, 1), (0.5, 0.5), (0.4, 0.4)], [0, 1, 2]),
        ([(1, 1), (1, 1), (1, 0.9)], [0, 1]),
        ([(0, 0)], [0]),
        ([], []),
    ],
)
def test_front_holds_what_nothing_dominates(points, expected):
    assert front(points) == expected


@pytest.mark.parametrize(
    ("points", "area"),
    [
        ([(2, 3)], 6),
        ([(1, 3), (2, 2), (3, 1)], 6),  # a staircase of six unit squares
        ([(1, 3), (2, 2), (3, 1), (1, 1), (2, 2)], 6),  # dominated and repeated points add 0
        ([(2, 1), (2, 3)], 6),
        ([(0, 5), (5, 0)], 0),
        ([(-1, -1)], 0),
        ([(2, 1), (-1, 3)], 2),
        ([], 0),
    ],
)
def test_hypervolume_by_hand(points, area):
    assert hypervolume(points) == pytest.approx(area)


class TestBootstrap:
    def test_the_mean_is_that_of_groups_means(self):
        assert bootstrap([[0.0, 0.0, 0.0], [1.0]], resamples=10).mean == 0.5

    def test_one_value_has_no_interval(self):
        interval = bootstrap([[0.4]])
        assert interval.mean == 0.4
        assert np.isnan([interval.low, interval.high]).all()
        assert str(interval) == "0.400"

    def test_two_groups_reach_from_one_to_the_other(self):
        assert bootstrap([[0.0], [1.0]]) == Interval(0.5, 0.0, 1.0)

    def test_seeds_count_within_a_group(self):
        """A group alone is resampled by its values; several of one value each leave the groups
        alone.
        """
        alone = bootstrap([[0.0, 1.0]])
        assert (alone.low, alone.high) == (0.0, 1.0)
        with_seeds, without = bootstrap([[0.0, 1.0]] * 4), bootstrap([[0.5]] * 4)
        assert with_seeds.high - with_seeds.low > 0.4
        assert without.high == without.low == 0.5

    def test_groups_of_unequal_size_are_padded_with_nothing(self):
        interval = bootstrap([[0.5], [0.5, 0.5, 0.5], [0.5, 0.5]])
        assert interval == Interval(0.5, 0.5, 0.5)

    def test_a_seed_gives_one_interval(self):
        values = [[v] for v in np.random.default_rng(0).random(8)]
        assert bootstrap(values) == bootstrap(values)
        assert bootstrap(values, resamples=100) != bootstrap(values, resamples=100, seed=1)
        assert bootstrap(values, resamples=100) != bootstrap(values)

    def test_it_covers_the_truth_as_often_as_it_says(self):
        """Twenty concepts of two seeds each, both with noise of their own; half the interval must
        cover less.
        """
        generator, hits = np.random.default_rng(0), {0.95: 0, 0.5: 0}
        for trial in range(200):
            concepts = generator.normal(0.0, 1.0, size=(20, 1))
            groups = concepts + generator.normal(0.0, 0.5, size=(20, 2))
            for level in hits:
                interval = bootstrap(groups.tolist(), level, resamples=400, seed=trial)
                hits[level] += interval.low <= 0.0 <= interval.high
        assert 0.90 <= hits[0.95] / 200 <= 0.99
        assert 0.40 <= hits[0.5] / 200 <= 0.62
