import json
from dataclasses import replace

import pytest

from erasure_lightning.attacks.outcome import Finding, Outcome, Point
from erasure_lightning.errors import ErasureError
from erasure_lightning.metrics.estimates import Estimate
from erasure_lightning.metrics.protocol import Protocol

PROTOCOL = Protocol(
    {"cat": ["a cat"]}, [0, 1], 2, 3.0, 16, "DDIM", "s", "b", "v", "tiny", "known", {}
)
OUTCOME = Outcome(
    attack="Guess", class_path="plug.Guess", arguments={"steps": 3}, paper="", method="UCE", concepts=["cat", "<b>"],
    edit="0123456789abcdef", success={a: Estimate(0.5, 0.0, 1.0, 2, 8) for a in ("original", "plain", "attacked")},
    found=[Finding("cat", 0, 0.25, "a c a t", None), Finding("cat", 1, 0.5, None, "cat-1.safetensors"),
           Finding("<b>", 0, 0.75, "naïve 猫", None)],
    curve=None, cost={"seconds": 1.5, "evaluations": 7, "backwards": 3, "peak_gib": 0.5}, protocol=PROTOCOL,
)  # fmt: skip


@pytest.mark.parametrize("curve", [None, [Point(0, 0.0), Point(10, 0.5, 0.25, 1.0)]], ids=str)
def test_what_is_saved_is_loaded(tmp_path, curve):
    outcome = replace(OUTCOME, curve=curve)
    outcome.save(tmp_path / "attack.json")
    assert Outcome.load(tmp_path / "attack.json") == outcome


def test_the_file_has_the_agreed_keys(tmp_path):
    OUTCOME.save(tmp_path / "attack.json")
    content = json.loads((tmp_path / "attack.json").read_text())
    assert set(content) == {
        "attack", "class", "arguments", "paper", "method", "concepts", "edit", "success", "found", "curve", "axis",
        "controls", "cost", "protocol",
    }  # fmt: skip
    assert content["success"]["plain"] == {
        "mean": 0.5,
        "low": 0.0,
        "high": 1.0,
        "seeds": 2,
        "pictures": 8,
    }
    assert content["protocol"]["identity"] == PROTOCOL.identity


def test_the_best_finding_of_a_concept():
    assert OUTCOME.best("cat").seed == 1


def test_a_missing_file_says_how_to_make_one(tmp_path):
    with pytest.raises(ErasureError, match=r"No findings at .*attack\.json.*`erasure attack`"):
        Outcome.load(tmp_path / "attack.json")


@pytest.mark.parametrize("spoil", [
    lambda c: c.pop("success"), lambda c: c["success"].pop("plain"), lambda c: c.update(found=[{"concept": "cat"}]),
    lambda c: c.update(protocol=[]), lambda c: c.update(more=1), lambda c: c.pop("curve"),
])  # fmt: skip
def test_anything_else_is_refused(tmp_path, spoil):
    path = tmp_path / "attack.json"
    OUTCOME.save(path)
    content = json.loads(path.read_text())
    spoil(content)
    path.write_text(json.dumps(content))
    with pytest.raises(ErasureError, match="needs findings as `erasure attack` writes them"):
        Outcome.load(path)


def test_a_file_cut_short_is_refused(tmp_path):
    path = tmp_path / "attack.json"
    OUTCOME.save(path)
    path.write_text(path.read_text()[:100])
    with pytest.raises(ErasureError, match="needs findings"):
        Outcome.load(path)
