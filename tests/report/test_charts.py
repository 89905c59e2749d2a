import math

import pytest

from erasure_lightning.metrics.estimates import Estimate
from erasure_lightning.report.charts import HEIGHT, SHARES, WIDTH, axis_of, chart, scale, whisker


@pytest.mark.parametrize(
    ("low", "high", "ticks", "texts"),
    [
        (0, 1, (0, 0.5, 1), ["0", "0.5", "1.0"]), (0, 97, (0, 50, 100), ["0", "50", "100"]),
        (0, 0.034, (0, 0.01, 0.02, 0.03, 0.04), ["0", "0.01", "0.02", "0.03", "0.04"]),
        (-0.3, 0.9, (-0.5, 0, 0.5, 1), ["-0.5", "0", "0.5", "1.0"]),
        (0, 4e5, (0, 1e5, 2e5, 3e5, 4e5), ["0", "1.0e5"]),
        (0, 3e-5, (0, 1e-5, 2e-5, 3e-5), ["0", "1.0e-5"]),
    ],
)  # fmt: skip
def test_ticks_are_round_and_hold_the_values(low, high, ticks, texts):
    result = scale(low, high)
    assert result.ticks == pytest.approx(ticks)
    assert [result.text(tick) for tick in result.ticks][: len(texts)] == texts
    assert result.low <= low < high <= result.high * (1 + 1e-9)


@pytest.mark.parametrize("value", [0, 3, -2, 1e-9, 1e12])
def test_one_value_has_an_axis_too(value):
    result = scale(value, value)
    assert result.low < value < result.high or value == 0


def test_a_whisker_stays_on_its_axis():
    assert whisker(Estimate(0.5, 0.25, 1.0, 3, 9)) == (25, 50, 100)
    assert whisker(Estimate(-0.5, -1.0, 2.0, 3, 9)) == (0, 0, 100)
    assert whisker(Estimate(math.nan, math.nan, math.nan, 0, 0)) is None


def test_an_axis_of_distances_begins_at_nothing():
    assert axis_of([Estimate(0.02, 0.01, 0.034, 3, 9), Estimate(0.01, 0, 0.02, 3, 9)])[
        :2
    ] == pytest.approx((0, 0.04))
    assert axis_of([]).high >= 1
    assert axis_of([Estimate(0, 0, 0, 3, 9)]).high > 0


def test_a_curve_lies_within_its_chart():
    result = chart("kept", [0, 50, 100], [1.0, 0.9, 0.8], "step", share=True)
    points = [tuple(map(float, point.split(","))) for point in result.line.split()]
    assert all(0 < x < WIDTH and 0 < y < HEIGHT for x, y in points)
    assert points[0][1] < points[-1][1]
    assert [tick.text for tick in result.up] == ["0", "0.5", "1.0"]
    assert result.description == "kept: 1 at step 0, 0.8 at step 100, between 0.8 and 1."
    assert result.last == "0.8"


def test_a_loss_is_drawn_from_nothing_on():
    assert chart("loss", [0, 1], [0.5, 0.4], "step").up[0].text == "0"
    assert chart("loss", [7, 7], [-0.5, -0.5], "step").up[0].text == "-0.6"


def test_shares_have_one_axis():
    assert SHARES.share(0.25) == 0.25
