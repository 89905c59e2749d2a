"""Closed forms: how often they are solved, and what they return."""

import pytest
from trivial import Redirection

from erasure_lightning.backbones.tiny import TinyBackbone
from erasure_lightning.concepts.concept import Concept
from erasure_lightning.errors import ErasureError
from erasure_lightning.testing import quick_fit


class Counted(Redirection):
    """Counts how often it is solved."""

    solutions = 0

    def solve(self):
        self.solutions += 1
        return super().solve()


class Partial(Redirection):
    """Leaves a layer out."""

    def solve(self):
        solution = super().solve()
        solution.popitem()
        return solution


def build(method):
    return method(concepts=[Concept("cat", "dog")], backbone=TinyBackbone())


def test_a_run_of_any_length_solves_once(tmp_path):
    module = quick_fit(build(Counted), 3, save=tmp_path / "one.ckpt")
    assert (module.solutions, module.global_step) == (1, 1)
    resumed = quick_fit(build(Counted), 3, resume=tmp_path / "one.ckpt")
    assert resumed.solutions == 0


def test_a_solution_without_a_layer_is_refused():
    with pytest.raises(ErasureError, match=r"Partial.solve must return every editable parameter"):
        quick_fit(build(Partial), 1)
