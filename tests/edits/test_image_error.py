"""The error of low-rank factors in images: which images are drawn, and how they are compared."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from erasure_lightning.edits import image_error as module
from erasure_lightning.edits.changes import LowRank
from erasure_lightning.edits.image_error import image_error


class Pipeline:
    """Draws images of one level after the other, and records its calls."""

    def __init__(self, *levels):
        self.levels = iter(levels)
        self.calls = []

    def set_progress_bar_config(self, **config):
        self._progress_bar_config = config

    def __call__(self, prompt, *, generator, **arguments):
        self.calls.append((prompt, generator.initial_seed(), arguments["num_inference_steps"]))
        return SimpleNamespace(images=torch.full((1, 3, 2, 2), next(self.levels)))


def test_it_is_the_mean_absolute_difference_of_images_of_equal_seeds(monkeypatch):
    monkeypatch.setattr(module, "_low_rank", lambda *arguments: nullcontext())
    pipeline = Pipeline(0.5, 0.5, 0.75, 0.25)  # which cancel out where signs count
    error = image_error(pipeline, {}, LowRank({}, [], 0.0), "a cat", 2)
    assert error == pytest.approx(0.25)
    assert pipeline.calls == [("a cat", seed, 20) for seed in (0, 1, 0, 1)]
