"""What the runner makes of curves and controls: intervals, the file, the picture."""

import io

import pytest
import torch
from PIL import Image
from under_attack import tiny_target

from erasure_lightning.attacks.base import Attack, Found
from erasure_lightning.attacks.curve import plot_curve
from erasure_lightning.attacks.outcome import Outcome
from erasure_lightning.attacks.runner import attack_all, sheet, write_outcome


class Rising(Attack):
    """Draws the cat in as many of its two pictures as the budget says, and in one fewer with the
    second seed.
    """

    axis = "tries"

    def search(self, target, cases):
        def drawn(count, case):
            shown = [
                target.scorer.picture("a cat" if i < count - case.seed else "a dog")
                for i in range(2)
            ]
            return torch.stack(shown)

        return [
            Found(
                drawn(3, case),
                curve={b: drawn(b, case) for b in (0, 1, 3)},
                controls={"dogs": drawn(0, case)},
            )
            for case in cases
        ]


class Plain(Attack):
    def search(self, target, cases):
        return [Found(target.draw(target.edited.encode([c.sentence]), c.seeds)) for c in cases]


@pytest.fixture
def rising():
    return attack_all(Rising(), tiny_target(), tell=lambda line: None)


def test_every_budget_and_every_control_has_its_interval(rising):
    outcome, _ = rising
    assert [(p.budget, p.success) for p in outcome.curve] == [(0, 0.0), (1, 0.25), (3, 1.0)]
    none, some, every = outcome.curve
    assert (none.low, none.high) == (0, 0)
    assert some.low == 0 < some.success < some.high <= 1
    assert (every.low, every.high) == (1, 1)
    assert outcome.success["attacked"].mean == 1
    assert outcome.controls["dogs"].mean == 0
    assert outcome.controls["dogs"].pictures == 4
    assert outcome.axis == "tries"


def test_the_least_budget_that_reaches_a_share(rising):
    outcome, _ = rising
    assert [outcome.least(share) for share in (0.0, 0.2, 0.25, 0.3, 1.0)] == [0, 1, 1, 3, 3]
    outcome.curve.pop()
    assert outcome.least(0.3) is None


def test_the_file_holds_them(rising, tmp_path):
    outcome, attempts = rising
    write_outcome(tmp_path, outcome, attempts)
    assert Outcome.load(tmp_path / "attack.json") == outcome
    assert (tmp_path / "curve.png").is_file()


def test_an_attack_without_a_curve_has_no_picture_of_one(tmp_path):
    outcome, attempts = attack_all(Plain(), tiny_target(), tell=lambda line: None)
    write_outcome(tmp_path, outcome, attempts)
    assert outcome.curve is None
    assert outcome.least(0.0) is None
    assert {path.name for path in tmp_path.iterdir()} == {"attack.json", "grid.png"}


def test_a_column_for_every_budget_and_control(rising):
    outcome, attempts = rising
    plain = attack_all(Plain(), tiny_target(), tell=lambda line: None)
    assert sheet(outcome, attempts).width > sheet(*plain).width


def test_the_picture_can_be_read_without_intervals_too(rising):
    outcome, _ = rising
    for curve in (outcome.curve, [p._replace(low=None, high=None) for p in outcome.curve]):
        outcome.curve[:] = curve
        assert Image.open(io.BytesIO(plot_curve(outcome))).size == (1200, 690)
