import json

from trivial import Distillation

from erasure_lightning.backbones.tiny import TinyBackbone
from erasure_lightning.callbacks.cost import Cost
from erasure_lightning.concepts import Concept
from erasure_lightning.testing import fit


def test_it_writes_what_the_edit_cost(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = fit(Distillation(concepts=[Concept("cat", "dog")], backbone=TinyBackbone()), 2, Cost())
    cost = json.loads((tmp_path / "cost.json").read_text())
    assert cost["steps"] == 2
    assert cost["seconds"] > 0
    assert cost["trained_parameters"] == sum(p.numel() for p in module.editable().values())
    assert 0 < cost["peak_gib"] < 1000


def test_a_resumed_run_adds_up():
    cost = Cost()
    cost.load_state_dict({"seconds": 100.0})
    cost.on_train_start(None, None)
    assert cost.state_dict()["seconds"] >= 100.0
