import json
from dataclasses import replace

import pytest

from erasure_lightning.errors import ErasureError
from erasure_lightning.metrics.estimates import Estimate
from erasure_lightning.metrics.protocol import Protocol, Result, compare_results

PROTOCOL = Protocol(
    prompts={"efficacy": ["a cat", "cat"], "specificity": ["a dog"]},
    seeds=[0, 1],
    steps=4,
    guidance=3.0,
    size=16,
    sampler="DDIMScheduler",
    scorer_fingerprint="s",
    backbone_fingerprint="b",
    vocabulary="v",
    backbone="here",
    scorer="there",
    versions={"torch": "2"},
    sampler_settings={"timestep_spacing": "leading", "betas": (0.1, 0.2)},
)


def share(mean):
    before = Estimate(1.0, 1.0, 1.0, 2, 4)
    after = Estimate(mean, 0.0, 1.0, 2, 4)
    return {"recognized": {"before": before, "after": after}}


RESULT = Result(PROTOCOL, {"method": "x.Y"}, {"efficacy": share(0.2), "specificity": share(0.8)})


def test_a_saved_result_is_loaded(tmp_path):
    RESULT.save(tmp_path / "metrics.json")
    assert Result.load(tmp_path / "metrics.json") == RESULT
    content = json.loads((tmp_path / "metrics.json").read_text())
    assert content["protocol"]["identity"] == PROTOCOL.identity
    assert content["overall"]["after"] == pytest.approx(0.8)


def test_a_result_without_its_precision_is_of_32_true(tmp_path):
    content = RESULT.to_json()
    del content["protocol"]["precision"]
    (tmp_path / "metrics.json").write_text(json.dumps(content))
    assert Result.load(tmp_path / "metrics.json") == RESULT


def test_settings_of_the_sampler_count_where_both_have_them():
    other = replace(PROTOCOL, sampler_settings={"timestep_spacing": "trailing"})
    assert other.identity != PROTOCOL.identity
    difference = "timestep_spacing of the sampler: 'leading' and 'trailing'"
    assert PROTOCOL.difference(other) == difference
    for settings in ({}, {"timestep_spacing": "leading"}):  # an older file, or an older library
        assert PROTOCOL.difference(replace(PROTOCOL, sampler_settings=settings)) == ""


def test_a_result_of_an_earlier_version_is_loaded(tmp_path):
    """Its number of images has another name, which a concept may have too."""
    protocol = replace(PROTOCOL, prompts={"pictures": ["a picture"]})
    result = replace(RESULT, protocol=protocol)
    text = json.dumps(result.to_json()).replace('"images": 4', '"pictures": 4')
    assert text.count("pictures") == 5
    (tmp_path / "metrics.json").write_text(text)
    assert Result.load(tmp_path / "metrics.json") == result


def test_paths_and_versions_are_recorded_but_make_no_difference():
    other = replace(PROTOCOL, backbone="elsewhere", scorer="elsewhere", versions={})
    assert other.identity == PROTOCOL.identity
    assert PROTOCOL.difference(other) == ""


def test_overall_is_the_harmonic_mean_of_what_should_be_high():
    result = replace(RESULT, estimates={**RESULT.estimates, "generality": share(0.6)})
    assert result.overall("after") == pytest.approx(3 / (1 / 0.8 + 1 / 0.4 + 1 / 0.8))
    assert result.overall("before") == 0
    assert Result(PROTOCOL, {}, {"efficacy": share(0.2)}).overall("after") is None


def test_a_comparison_has_a_row_for_each_metric():
    other = replace(RESULT, estimates={group: share(0.5) for group in RESULT.estimates})
    rows = compare_results({"one": RESULT, "two": other})
    assert [(r.group, r.metric) for r in rows] == [
        ("efficacy", "recognized"),
        ("specificity", "recognized"),
    ]
    assert [e.mean for e in rows[0].after.values()] == [0.2, 0.5]
    assert rows[0].before == Estimate(1.0, 1.0, 1.0, 2, 4)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"steps": 5}, "steps: 4 and 5"),
        ({"precision": "bf16-mixed"}, "precision: '32-true' and 'bf16-mixed'"),
        ({"seeds": [0, 2]}, "seeds: 1 and 2"),
        ({"seeds": [0]}, "seeds: 1 and 1 in all"),
        ({"scorer_fingerprint": ""}, "scorer_fingerprint: 's' and ''"),
        (
            {"prompts": {"efficacy": ["a star"]}, "seeds": [9]},
            "prompts of efficacy: 'a cat', 'cat' and 'a star'",
        ),
        ({"prompts": {"efficacy": ["a cat", "cat"]}}, "prompts of specificity: 'a dog' and none"),
    ],
)
def test_different_protocols_are_refused_by_the_first_field(change, words):
    other = replace(RESULT, protocol=replace(PROTOCOL, **change))
    assert other.protocol.identity != PROTOCOL.identity
    message = rf"one and two were measured differently .* They differ in {words}\."
    with pytest.raises(ErasureError, match=message):
        compare_results({"one": RESULT, "two": other})


def test_each_pair_of_a_comparison_has_one_protocol():
    """The first may be an older one, without the settings in which the others differ."""
    settings = ({}, {"timestep_spacing": "leading"}, {"timestep_spacing": "trailing"})
    results = {
        str(number): replace(RESULT, protocol=replace(PROTOCOL, sampler_settings=each))
        for number, each in enumerate(settings)
    }
    with pytest.raises(ErasureError, match="^1 and 2 were measured differently.*timestep_spacing"):
        compare_results(results)


def test_an_empty_comparison_is_refused():
    with pytest.raises(ErasureError, match="needs the figures of at least one edit; found none"):
        compare_results({})


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ErasureError, match=r"No figures at .* does not exist"):
        Result.load(tmp_path / "metrics.json")


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"protocol": {"steps": 3}, "edit": {}, "estimates": {}}']
)
def test_another_file_is_refused(tmp_path, content):
    (tmp_path / "metrics.json").write_text(content)
    with pytest.raises(
        ErasureError, match="needs figures as `erasure test` writes them; found others"
    ):
        Result.load(tmp_path / "metrics.json")
