import warnings
from types import SimpleNamespace

import pytest
import torch
from tiny_scorers import save_scorer
from trivial import Distillation

from erasure_lightning.backbones.tiny import TinyBackbone
from erasure_lightning.concepts.concept import Concept
from erasure_lightning.diffusion.sampling import sample_images
from erasure_lightning.errors import ErasureError
from erasure_lightning.metrics.scorer import Scorer
from erasure_lightning.metrics.seed_statistics import CandidateLabels
from erasure_lightning.retention.monitor import RetentionMonitor
from erasure_lightning.testing import edit_of, quick_fit


class Noting(RetentionMonitor):
    """Keeps its scores, and the edit at each."""

    def __init__(self, **arguments):
        super().__init__(count=2, **({"steps": 2} | arguments))
        self.scores, self.edits = [], []

    def on_train_batch_end(self, trainer, module, *rest):
        super().on_train_batch_end(trainer, module, *rest)
        if trainer.global_step % self.every == 0:
            self.edits.append(edit_of(module))

    def _score(self, after):
        self.scores.append(super()._score(after))
        return self.scores[-1]


def run(monitor, steps=6, lr=1e-2):
    return quick_fit(
        Distillation(concepts=[Concept("cat", "dog")], backbone=TinyBackbone(), lr=lr),
        steps,
        monitor,
    )


def test_it_measures_every_few_steps_and_sees_change():
    monitor = Noting(every=2)
    run(monitor)
    assert len(monitor.scores) == 3
    assert all(0 <= share <= 1 for score in monitor.scores for share in score)
    assert monitor.scores[-1][0] > 0


def test_an_accumulated_step_is_measured_once():
    monitor = RetentionMonitor(every=1, count=2, steps=1)
    measured = []
    score = monitor._score
    monitor._score = lambda after: measured.append(1) or score(after)
    module = Distillation(concepts=[Concept("cat", "dog")], backbone=TinyBackbone(), lr=1e-2)
    quick_fit(module, 2, monitor, accumulate_grad_batches=3)
    assert len(measured) == 2


def test_it_goes_back_to_the_best_trade_off():
    monitor = Noting(every=1)
    module = run(monitor)
    harmonic = [2 * f * k / (f + k) for f, k in monitor.scores]
    best = monitor.edits[harmonic.index(max(harmonic))]
    assert monitor.best["step"] == harmonic.index(max(harmonic)) + 1
    assert all(torch.equal(best[n], p) for n, p in edit_of(module).items())


def test_it_can_leave_the_last_step_alone():
    monitor = Noting(every=1, keep_best=False)
    module = run(monitor)
    assert all(torch.equal(monitor.edits[-1][n], p) for n, p in edit_of(module).items())


@pytest.mark.parametrize("limit", [{"min_retained": 1.0}, {"goal": 0.0}])
def test_it_stops_at_a_limit_or_a_goal(limit):
    monitor = Noting(every=1, **limit)
    module = run(monitor)
    assert module.trainer.global_step == 1


class Scripted(RetentionMonitor):
    """Measures scores of erasure and retention, one after the other."""

    def __init__(self, *scores, **arguments):
        super().__init__(every=1, count=1, steps=1, **arguments)
        self.scores = iter(scores)

    def _score(self, features):
        return next(self.scores)


SCORES = (0.2, 0.9), (0.6, 0.8), (0.7, 0.3), (0.8, 0.9)


@pytest.mark.parametrize(
    ("limit", "last", "best"),
    [
        ({"min_retained": 0.5}, 3, 2),  # the third retains less
        ({"goal": 0.5}, 2, 2),
        ({"min_retained": 0.95}, 1, 0),
        ({}, 4, 4),
    ],
    ids=str,
)
def test_it_stops_at_the_first_edit_outside_its_limits(limit, last, best):
    monitor = Scripted(*SCORES, **limit)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "RetentionMonitor measured no edit")
        module = run(monitor, steps=4)
    assert module.trainer.global_step == last
    assert monitor.best["step"] == best


class TestScores:
    """Of two images of the concept and three of what is retained, by their features."""

    def monitor(self, **arguments):
        monitor = RetentionMonitor(**arguments)
        monitor._original_features = torch.eye(5)
        monitor._concept_prompts = [("a cat", ""), ("a photo of a cat", "")]
        monitor._classifier = None
        return monitor

    features = torch.eye(5)
    features[0] = torch.tensor([0.0, 1.0, 0.0, 0.0, 0.0])  # as unlike as can be
    features[1] = torch.tensor([0.0, 0.6, 0.8, 0.0, 0.0])
    features[3] = torch.tensor([0.8, 0.0, 0.0, 0.6, 0.0])
    features[4] = torch.tensor([0.0, 0.0, 0.0, 0.0, -1.0])  # counts as 0

    def test_are_mean_similarities(self):
        erased, retained = self.monitor()._score(self.features)
        assert erased == pytest.approx(1 - 0.6 / 2)
        assert retained == pytest.approx(1.6 / 3)

    def test_are_of_each_group_alone(self):
        monitor = self.monitor(prompts={"pets": ["a dog"], "others": ["a car", "a tree"]})
        by_group = monitor._by_group(self.features)
        assert by_group == pytest.approx(
            {"monitor/retained/pets": 1, "monitor/retained/others": 0.3}
        )

    def test_with_a_scorer_are_shares_that_it_recognises(self):
        monitor = self.monitor()
        right = CandidateLabels(torch.eye(5), torch.tensor([True, False, False, False, False]))
        monitor._classifier = SimpleNamespace(candidates=lambda group, thing: right)
        features = self.features[[0, 0, 2, 3, 4]]
        assert monitor._score(features)[0] == 1
        features[0] = torch.eye(5)[0]
        assert monitor._score(features)[0] == 0.5


def test_its_images_have_its_steps_and_guidance(monkeypatch):
    settings = []

    def recorded(*arguments, **numbers):
        settings.append(numbers)
        return sample_images(*arguments, **numbers)

    monkeypatch.setattr("erasure_lightning.retention.monitor.sample_images", recorded)
    monitor = RetentionMonitor(every=1, count=3, steps=3, guidance=2.0)
    run(monitor, steps=1)
    assert settings == [{"steps": 3, "guidance": 2.0}] * 2
    assert len(monitor._retained_prompts) == 3


def test_it_measures_prompts_of_the_argument():
    monitor = Noting(every=1, prompts=["a tree", "a car", "a boat"])
    run(monitor, steps=1)
    assert monitor._retained_prompts == ["a tree", "a car", "a boat"]


@pytest.mark.slow
def test_with_a_world_it_recognises_the_concept():
    concept = Concept("cigarette", "lollipop")
    monitor = Noting(every=1, steps=10)
    quick_fit(Distillation(backbone="emoji-world", concepts=[concept], lr=1e-7), 1, monitor)
    erased, retained = monitor.scores[0]
    assert erased == 0
    assert retained > 0.99


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"every": 0}, "every of at least 1; found 0"),
        ({"min_retained": 2.0}, "needs min_retained of at least 0 and at most 1; found 2.0"),
        ({"goal": float("nan")}, "needs a finite goal; found nan"),
        ({"guidance": float("inf")}, "needs a finite guidance; found inf"),
    ],
)
def test_arguments_out_of_range(arguments, words):
    with pytest.raises(ErasureError, match=words):
        RetentionMonitor(**arguments)


def test_an_empty_group_is_refused():
    with pytest.raises(
        ErasureError,
        match="RetentionMonitor needs a prompt at least in each group; found none in 'b'",
    ):
        RetentionMonitor(prompts={"a": ["a dog"], "b": []})


@pytest.mark.parametrize("prompts", [[], {}])
def test_an_empty_list_is_refused(prompts):
    with pytest.raises(ErasureError, match="RetentionMonitor needs at least one prompt; found an"):
        RetentionMonitor(prompts=prompts)


def test_another_fit_does_not_end_with_the_edit_of_the_one_before():
    monitor = Noting(every=1)
    run(monitor)
    monitor.best["tradeoff"] = 2.0  # better than any edit of the second fit
    monitor.edits.clear()
    module = run(monitor, steps=1, lr=1e-3)
    assert all(torch.equal(monitor.edits[0][n], p) for n, p in edit_of(module).items())


def test_it_says_that_no_edit_retains_enough():
    with pytest.warns(UserWarning, match="no edit that retains 1 or more, and restores none"):
        run(Noting(every=1, min_retained=1.0))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "RetentionMonitor")
        run(Noting(every=1, min_retained=0.0), steps=1)


def test_it_frees_the_scorer_when_training_ends(tmp_path):
    monitor = Noting(every=1, scorer=str(save_scorer(tmp_path / "scorer")))
    run(monitor, steps=1)
    assert monitor.scores
    assert not any(isinstance(value, Scorer) for value in vars(monitor).values())
