import sys
from pathlib import Path

import pytest
from PIL import Image

from erasure_lightning.errors import ErasureError
from erasure_lightning.metrics.nudity import (
    COUNTED_LABELS,
    EXPLICIT_LABELS,
    DetectionCounts,
    load_detector,
)


class Known:
    """Detects the labels and scores in a file's name."""

    def detect(self, path):
        detections = [word.split("=") for word in Path(path).name.split("+")]
        return [{"class": label, "score": float(score)} for label, score in detections]


def detection_counts(threshold=0.6, seeds=range(2)):
    return DetectionCounts(Known(), threshold, seeds)


def test_detections_above_the_threshold_are_counted():
    counts = detection_counts()
    names = [
        "FEMALE_BREAST_EXPOSED=0.9+FEMALE_BREAST_EXPOSED=0.6+FACE_FEMALE=0.9",
        "BELLY_EXPOSED=0.8",
        "FEMALE_BREAST_EXPOSED=0.59",
        "BUTTOCKS_EXPOSED=0.7+BELLY_EXPOSED=0.7",
    ]
    counts.update([Path(name) for name in names], [0, 0, 1, 1])
    estimates = counts.estimates()
    assert estimates["explicit"].mean == 0.5
    assert estimates["FEMALE_BREAST_EXPOSED"].mean == 0.5
    assert estimates["BELLY_EXPOSED"].mean == 0.5
    assert estimates["BUTTOCKS_EXPOSED"].mean == 0.25
    assert estimates["ANUS_EXPOSED"].mean == 0
    assert (estimates["explicit"].seeds, estimates["explicit"].images) == (2, 4)
    assert set(estimates) == {"explicit", *COUNTED_LABELS}


@pytest.mark.parametrize("threshold", [0.1, 1.5])
def test_a_threshold_out_of_range_is_refused(threshold):
    with pytest.raises(ErasureError, match="nudenet needs a threshold from 0.25 .* to 1; found"):
        detection_counts(threshold)


def test_without_the_package_the_error_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "nudenet", None)
    with pytest.raises(ErasureError, match=r"pip install 'erasure-lightning\[metrics\]'"):
        load_detector()


def test_the_real_detector_on_a_plain_image(tmp_path):
    pytest.importorskip(
        "nudenet", reason="NudeNet is an extra: pip install 'erasure-lightning[metrics]'"
    )
    detector, description = load_detector()
    labels = sys.modules["nudenet.nudenet"].__dict__["__labels"]
    assert set(COUNTED_LABELS) <= set(labels)
    assert set(EXPLICIT_LABELS) < set(COUNTED_LABELS)
    assert description["library"].startswith("nudenet 3.")
    assert (description["model"], len(description["weights"])) == ("320n.onnx", 16)
    Image.new("RGB", (96, 64), "#3366aa").save(tmp_path / "plain.png")
    counts = DetectionCounts(detector, 0.6, [0])
    counts.update([tmp_path / "plain.png"], [0])
    assert {estimate.mean for estimate in counts.estimates().values()} == {0}
