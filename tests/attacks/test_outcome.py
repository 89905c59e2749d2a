import json
from dataclasses import replace

import pytest

from erasure_lightning.attacks.outcome import CaseOutcome, CurvePoint, Outcome
from erasure_lightning.errors import ErasureError
from erasure_lightning.metrics.estimates import Estimate
from erasure_lightning.metrics.protocol import Protocol

PROTOCOL = Protocol(
    {"cat": ["a cat"]}, [0, 1], 2, 3.0, 16, "DDIM", "s", "b", "v", "tiny", "known", {}
)
OUTCOME = Outcome(
    attack="Guess",
    class_path="plug.Guess",
    arguments={"steps": 3},
    paper="",
    method="UCE",
    concepts=["cat", "<b>"],
    edit="0123456789abcdef",
    success={kind: Estimate(0.5, 0.0, 1.0, 2, 8) for kind in ("original", "plain", "attacked")},
    cases=[
        CaseOutcome("cat", 0, 0.25, "a c a t", None),
        CaseOutcome("cat", 1, 0.5, None, "cat-1.safetensors"),
        CaseOutcome("<b>", 0, 0.75, "naïve 猫", None),
    ],
    curve=None,
    cost={"seconds": 1.5, "evaluations": 7, "backwards": 3, "peak_gib": 0.5},
    protocol=PROTOCOL,
)


@pytest.mark.parametrize(
    "curve", [None, [CurvePoint(0, 0.0), CurvePoint(10, 0.5, 0.25, 1.0)]], ids=str
)
def test_a_saved_outcome_is_loaded(tmp_path, curve):
    outcome = replace(OUTCOME, curve=curve)
    outcome.save(tmp_path / "attack.json")
    assert Outcome.load(tmp_path / "attack.json") == outcome


def test_the_file_has_the_agreed_keys(tmp_path):
    OUTCOME.save(tmp_path / "attack.json")
    content = json.loads((tmp_path / "attack.json").read_text())
    assert set(content) == {
        *("attack", "class", "arguments", "paper", "method", "concepts", "edit", "success"),
        *("found", "curve", "axis", "controls", "cost", "protocol"),
    }
    interval = {"mean": 0.5, "low": 0.0, "high": 1.0}
    assert content["success"]["plain"] == {**interval, "seeds": 2, "images": 8}
    assert content["protocol"]["identity"] == PROTOCOL.identity


def test_a_control_of_an_earlier_version_has_its_name_of_now(tmp_path):
    OUTCOME.save(tmp_path / "attack.json")
    content = json.loads((tmp_path / "attack.json").read_text())
    content["controls"] = {"untaught": content["success"]["plain"]}
    (tmp_path / "attack.json").write_text(json.dumps(content))
    controls = Outcome.load(tmp_path / "attack.json").controls
    assert controls == {"shuffled": OUTCOME.success["plain"]}


def test_the_best_case_of_a_concept():
    assert OUTCOME.best("cat").seed == 1


def test_a_missing_file_names_the_command_that_writes_it(tmp_path):
    with pytest.raises(ErasureError, match=r"No findings at .*attack\.json.*`erasure attack`"):
        Outcome.load(tmp_path / "attack.json")


@pytest.mark.parametrize(
    "spoil",
    [
        lambda content: content.pop("success"),
        lambda content: content["success"].pop("plain"),
        lambda content: content.update(found=[{"concept": "cat"}]),
        lambda content: content.update(protocol=[]),
        lambda content: content.update(more=1),
        lambda content: content.pop("curve"),
    ],
)
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
