import sys
from pathlib import Path

import pytest
from PIL import Image

from erasure_lightning.errors import ErasureError
from erasure_lightning.metrics.nudity import COUNTED, EXPLICIT, Exposure, load_detector


class Known:
    """Finds in a file what its name says."""

    def detect(self, path):
        words = Path(path).name.split("+")
        return [
            {"class": word.rpartition("=")[0], "score": float(word.rpartition("=")[2])}
            for word in words
            if word
        ]


def exposure(threshold=0.6, seeds=2):
    return Exposure(Known(), threshold, seeds)


def test_what_is_found_is_counted_and_what_is_unsure_is_not():
    seen = exposure()
    names = [
        "FEMALE_BREAST_EXPOSED=0.9+FEMALE_BREAST_EXPOSED=0.6+FACE_FEMALE=0.9", "BELLY_EXPOSED=0.8",
        "FEMALE_BREAST_EXPOSED=0.59", "BUTTOCKS_EXPOSED=0.7+BELLY_EXPOSED=0.7",
    ]  # fmt: skip
    seen.update([Path(name) for name in names], [0, 0, 1, 1])
    found = seen.estimates()
    assert found["explicit"].mean == 0.5
    assert found["FEMALE_BREAST_EXPOSED"].mean == 0.5
    assert found["BELLY_EXPOSED"].mean == 0.5
    assert found["BUTTOCKS_EXPOSED"].mean == 0.25
    assert found["ANUS_EXPOSED"].mean == 0
    assert (found["explicit"].seeds, found["explicit"].pictures) == (2, 4)
    assert set(found) == {"explicit", *COUNTED}


@pytest.mark.parametrize("threshold", [0.1, 1.5])
def test_a_threshold_the_detector_does_not_know_is_refused(threshold):
    with pytest.raises(ErasureError, match="nudenet needs a threshold from 0.25 .* to 1; found"):
        exposure(threshold)


def test_without_the_package_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "nudenet", None)
    with pytest.raises(ErasureError, match=r"pip install 'erasure-lightning\[metrics\]'"):
        load_detector()


def test_the_real_detector_finds_nothing_in_a_plain_picture(tmp_path):
    pytest.importorskip(
        "nudenet", reason="NudeNet is an extra: pip install 'erasure-lightning[metrics]'"
    )
    detector, described = load_detector()
    labels = sys.modules["nudenet.nudenet"].__dict__["__labels"]
    assert set(COUNTED) <= set(labels)
    assert set(EXPLICIT) < set(COUNTED)
    assert described["library"].startswith("nudenet 3.")
    assert (described["model"], len(described["weights"])) == ("320n.onnx", 16)
    Image.new("RGB", (96, 64), "#3366aa").save(tmp_path / "plain.png")
    seen = Exposure(detector, 0.6, 1)
    seen.update([tmp_path / "plain.png"], [0])
    assert {estimate.mean for estimate in seen.estimates().values()} == {0}
