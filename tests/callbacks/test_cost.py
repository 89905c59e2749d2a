import json
from types import SimpleNamespace

import torch
from trivial import Distillation

from erasure_lightning.backbones.tiny import TinyBackbone
from erasure_lightning.callbacks.cost import Cost, peak_memory
from erasure_lightning.concepts.concept import Concept
from erasure_lightning.methods.sage import SAGE
from erasure_lightning.retention.monitor import RetentionMonitor
from erasure_lightning.testing import quick_fit


def test_it_writes_the_cost_of_a_fit(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = quick_fit(
        Distillation(concepts=[Concept("cat", "dog")], backbone=TinyBackbone()), 2, Cost()
    )
    cost = json.loads((tmp_path / "cost.json").read_text())
    assert cost["steps"] == 2
    assert cost["seconds"] > 0
    assert cost["trained_parameters"] == sum(p.numel() for p in module.editable().values())
    assert 0 < cost["peak_gib"] < 1000


def test_memory_is_that_of_the_device_in_use(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.max_memory_allocated", lambda device=None: 2**50)
    quick_fit(Distillation(concepts=[Concept("cat", "dog")], backbone=TinyBackbone()), 1, Cost())
    assert 0 < json.loads((tmp_path / "cost.json").read_text())["peak_gib"] < 1000
    assert peak_memory(torch.device("cuda", 1)) == 2**20


def test_it_counts_the_evaluations_of_both_denoisers(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    quick_fit(Distillation(concepts=[Concept("cat", "dog")], backbone=TinyBackbone()), 3, Cost())
    cost = json.loads((tmp_path / "cost.json").read_text())
    assert cost["evaluations"] == 3 * 2 * 2  # steps, prompts, models
    assert cost["backwards"] == 3 * 2


def test_a_second_fit_with_the_same_callback_starts_anew(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cost = Cost()
    for _ in range(2):
        module = Distillation(concepts=[Concept("cat", "dog")], backbone=TinyBackbone())
        quick_fit(module, 3, cost)
        assert json.loads((tmp_path / "cost.json").read_text())["evaluations"] == 3 * 2 * 2


def test_a_denoiser_that_is_not_edited_is_counted_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = {"erase_space": "noise", "check_steps": 0, "eta": 1.0}
    quick_fit(
        SAGE(concepts=[Concept("cat", "dog")], backbone=TinyBackbone(), **arguments), 1, Cost()
    )
    assert json.loads((tmp_path / "cost.json").read_text())["evaluations"] == 3 * 2


def test_what_retention_evaluates_before_the_first_step_counts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = Distillation(concepts=[Concept("cat", "dog")], backbone=TinyBackbone())
    monitor = RetentionMonitor(every=100, count=2, steps=3, guidance=2.0)
    quick_fit(module, 1, monitor, Cost())
    cost = json.loads((tmp_path / "cost.json").read_text())
    original_images = (2 + 2) * 3 * 2  # concept and retained prompts, steps, halves of guidance
    assert cost["evaluations"] == original_images + 2 * 2


def test_a_resumed_run_adds_up():
    cost = Cost()
    module = Distillation(concepts=[Concept("cat", "dog")], backbone=TinyBackbone())
    module.configure_model()
    cost.load_state_dict({"seconds": 100.0, "evaluations": 7, "backwards": 3})
    cost.on_fit_start(SimpleNamespace(ckpt_path="last.ckpt"), module)
    assert cost.state_dict()["seconds"] >= 100.0
    assert cost.state_dict()["evaluations"] == 7
