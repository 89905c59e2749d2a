"""Curves and controls in an outcome: intervals, the file, the plot."""

import io
from dataclasses import replace

import pytest
import torch
from PIL import Image
from under_attack import tiny_target

from erasure_lightning.attacks.base import Attack, AttackResult
from erasure_lightning.attacks.curve import plot_curve
from erasure_lightning.attacks.outcome import Outcome
from erasure_lightning.attacks.runner import attack_concepts, attack_grid, write_outcome
from erasure_lightning.data import label_fonts


class Rising(Attack):
    """Shows the cat in ``budget - seed`` of its two images."""

    axis = "tries"

    def search(self, target, cases):
        def images(budget, case):
            labels = ["a cat" if i < budget - case.seed else "a dog" for i in range(2)]
            return torch.stack([target.scorer.picture(label) for label in labels])

        return [
            AttackResult(
                images(3, case),
                curve={budget: images(budget, case) for budget in (0, 1, 3)},
                controls={"dogs": images(0, case)},
            )
            for case in cases
        ]


class Plain(Attack):
    def search(self, target, cases):
        encode = target.edited.encode
        return [AttackResult(target.generate(encode([case.prompt]), case.seeds)) for case in cases]


@pytest.fixture
def rising():
    return attack_concepts(Rising(), tiny_target(), report=lambda line: None)


def test_every_budget_and_every_control_has_its_interval(rising):
    outcome, _ = rising
    assert [(p.budget, p.success) for p in outcome.curve] == [(0, 0.0), (1, 0.25), (3, 1.0)]
    none, some, every = outcome.curve
    assert (none.low, none.high) == (0, 0)
    assert some.low == 0 < some.success < some.high <= 1
    assert (every.low, every.high) == (1, 1)
    assert outcome.success["attacked"].mean == 1
    assert outcome.controls["dogs"].mean == 0
    assert outcome.controls["dogs"].images == 4
    assert outcome.axis == "tries"


def test_the_smallest_budget_that_reaches_a_share(rising):
    outcome, _ = rising
    budgets = [outcome.smallest_budget(share) for share in (0.0, 0.2, 0.25, 0.3, 1.0)]
    assert budgets == [0, 1, 1, 3, 3]
    outcome.curve.pop()
    assert outcome.smallest_budget(0.3) is None


def test_the_file_contains_curve_and_controls(rising, tmp_path):
    outcome, scored = rising
    write_outcome(tmp_path, outcome, scored)
    assert Outcome.load(tmp_path / "attack.json") == outcome
    assert (tmp_path / "curve.png").is_file()


def test_an_attack_without_a_curve_has_no_plot(tmp_path):
    outcome, scored = attack_concepts(Plain(), tiny_target(), report=lambda line: None)
    write_outcome(tmp_path, outcome, scored)
    assert outcome.curve is None
    assert outcome.smallest_budget(0.0) is None
    assert {path.name for path in tmp_path.iterdir()} == {"attack.json", "grid.png"}


def test_a_column_for_every_budget_and_control(rising):
    outcome, scored = rising
    plain = attack_concepts(Plain(), tiny_target(), report=lambda line: None)
    assert attack_grid(outcome, scored).width > attack_grid(*plain).width


def test_the_plot_needs_no_intervals(rising):
    outcome, _ = rising
    for curve in (outcome.curve, [p._replace(low=None, high=None) for p in outcome.curve]):
        outcome.curve[:] = curve
        assert Image.open(io.BytesIO(plot_curve(outcome))).size == (1200, 690)


def test_letters_that_no_font_has_are_spelled_out_in_the_plot(rising, monkeypatch, recwarn):
    outcome, _ = rising
    monkeypatch.setattr("matplotlib.font_manager.findSystemFonts", list)
    label_fonts._best_file.cache_clear()
    for name in ("cat", "\u732b"):
        plot_curve(replace(outcome, concepts=[name]))
    assert not [w for w in recwarn.list if "missing from font" in str(w.message)]
