"""Published metrics of finished images, each with its interval and its protocol."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from erasure_lightning.api.accelerator import default_device
from erasure_lightning.api.image_folder import FolderImage, image_batches, read_image_folder
from erasure_lightning.callbacks.image_writer import MANIFEST_FILE
from erasure_lightning.checks import require
from erasure_lightning.errors import ErasureError
from erasure_lightning.files.text_files import read_prompts_file
from erasure_lightning.files.words import did_you_mean
from erasure_lightning.files.writing import SCORE_FILE
from erasure_lightning.metrics.distribution_distance import FrechetDistance, KernelDistance
from erasure_lightning.metrics.estimates import Estimate
from erasure_lightning.metrics.features import FeatureExtractor
from erasure_lightning.metrics.image_metrics import (
    ClipScore,
    FeatureDistance,
    ImageMetric,
    LabelAccuracy,
    NudityDetections,
    PairedLpips,
)
from erasure_lightning.metrics.nudity import load_detector
from erasure_lightning.metrics.perceptual import Lpips
from erasure_lightning.metrics.protocol import short_hash
from erasure_lightning.metrics.score import Score
from erasure_lightning.metrics.scorer import Scorer

#: The metrics by name, and the network that each needs; nudenet brings its own.
NETWORK_OF_METRIC = {
    "clip": "scorer",
    "accuracy": "scorer",
    "fid": "features",
    "kid": "features",
    "lpips": "alexnet",
    "nudenet": "",
}

#: Sources of the networks.
NETWORK_SOURCES = {
    "scorer": "a folder with a CLIP or SigLIP",
    "features": "a folder with a vision model",
    "alexnet": "a safetensors file with AlexNet's convolutions",
}

#: Metrics that need prompts or pairs, and metrics of sets of images.
_OF_PAIRS = ("clip", "accuracy", "lpips")
_OF_SETS = ("fid", "kid")

#: The fewest images of which every metric has an interval.
_MIN_IMAGES = 3


@dataclass(frozen=True)
class ScoreSettings:
    """What the metrics of `score_images` need.

    Args:
        scorer: Folder or Hub id of the CLIP or SigLIP of ``clip`` and ``accuracy``.
        features: Folder or Hub id of the vision model of ``fid`` and ``kid``.
        alexnet: Safetensors file with AlexNet's convolutions, for ``lpips``.
        reference: Folder of real images that ``fid`` and ``kid`` compare with; without one, images
            after an edit are compared with those before it.
        labels: Text file of the labels of ``accuracy``, one a line.
        template: Sentence of ``accuracy`` with ``{}`` for the label.
        threshold: Lowest score of a detection of ``nudenet`` that counts, 0..1.

    Raises:
        ErasureError: If the template has no ``{}``, or the threshold is out of range.
    """

    scorer: str | None = None
    features: str | None = None
    alexnet: str | None = None
    reference: Path | None = None
    labels: str | None = None
    template: str = "a photo of a {}"
    threshold: float = 0.6

    def __post_init__(self) -> None:
        if "{}" not in self.template:
            raise ErasureError(f"--template needs {{}} for the label; found {self.template!r}.")
        require("erasure score", at_least=0, at_most=1, **{"--threshold": self.threshold})


def score_images(
    folder: Path,
    metrics: Sequence[str],
    settings: ScoreSettings | None = None,
    run_dir: Path | None = None,
) -> Score:
    """Score the images of a folder, and write ``score.json``.

    Args:
        folder: A folder of images, or one that ``predict`` wrote.
        metrics: Names out of `NETWORK_OF_METRIC`.
        settings: Networks, labels and thresholds.
        run_dir: Where ``score.json`` is written; into ``folder`` by default.

    Raises:
        ErasureError: If images, weights or a package are missing, or a score would be overwritten.
    """
    settings = settings or ScoreSettings()
    metrics = list(dict.fromkeys(metrics))
    _check_networks(metrics, settings)
    images = read_image_folder(folder)
    reference = read_image_folder(settings.reference) if settings.reference else []
    if run_dir is not None and run_dir.is_file():
        raise ErasureError(f"--run_dir needs a folder for {SCORE_FILE}; found the file {run_dir}.")
    path = (run_dir or folder) / SCORE_FILE
    if path.exists():
        raise ErasureError(
            f"{path} exists already, and is not overwritten. Choose another folder with --run_dir."
        )
    _check_images(folder, images, reference, metrics, settings)
    device = default_device()
    meters = [_meter(name, images, reference, settings, device) for name in metrics]
    for batch in image_batches(images, device):
        for meter in meters:
            meter.update(batch)
    score = _score(meters, images, reference)
    score.save(path)
    return score


def _check_networks(metrics: Sequence[str], settings: ScoreSettings) -> None:
    """Raise without a metric, for an unknown one, or for one without its network."""
    if not metrics:
        raise ErasureError("erasure score needs metrics; found none.")
    for name in metrics:
        if name not in NETWORK_OF_METRIC:
            hint = did_you_mean(name, NETWORK_OF_METRIC)
            raise ErasureError(
                f"unknown metric {name!r}.{hint} Known: {', '.join(NETWORK_OF_METRIC)}."
            )
        network = NETWORK_OF_METRIC[name]
        if network and getattr(settings, network) is None:
            raise ErasureError(f"{name} needs {NETWORK_SOURCES[network]}: give --{network}.")


def _check_images(
    folder: Path,
    images: Sequence[FolderImage],
    reference: Sequence[FolderImage],
    metrics: Sequence[str],
    settings: ScoreSettings,
) -> None:
    """Raise if a metric lacks images or prompts, before any weights are loaded."""
    if len(images) < _MIN_IMAGES:
        raise ErasureError(
            f"erasure score needs at least {_MIN_IMAGES} images for an interval; found"
            f" {len(images)}."
        )
    single = "before" not in images[0].files
    lacking = [name for name in metrics if name in _OF_PAIRS]
    if single and lacking:
        raise ErasureError(
            f"{lacking[0]} needs what predict writes (images before and after, and their prompts);"
            f" found no {MANIFEST_FILE} in {folder}."
        )
    lacking = [name for name in metrics if name in _OF_SETS]
    if single and lacking and not reference:
        raise ErasureError(
            f"{lacking[0]} of a plain folder needs images to compare with: give --reference FOLDER."
        )
    if lacking and len(reference) == 1:
        raise ErasureError(
            f"{lacking[0]} compares two sets and needs at least 2 images as --reference; found 1."
        )
    if "accuracy" in metrics and not settings.labels:
        raise ErasureError(
            "accuracy needs what an image may show: give --labels FILE, a text file of one a line."
        )


def _meter(
    name: str,
    images: Sequence[FolderImage],
    reference: Sequence[FolderImage],
    settings: ScoreSettings,
    device: torch.device,
) -> ImageMetric:
    whens = list(images[0].files)
    seeds = sorted({image.seed for image in images})
    network = NETWORK_OF_METRIC[name]
    source = getattr(settings, network) if network else ""
    if name == "clip":
        return ClipScore(Scorer.load(source).to(device), whens, seeds)
    if name == "accuracy":
        labels = read_prompts_file(settings.labels or "", "accuracy")
        scorer = Scorer.load(source).to(device)
        return LabelAccuracy(scorer, labels, settings.template, whens, seeds)
    if name in _OF_SETS:
        kind = FrechetDistance if name == "fid" else KernelDistance
        features = FeatureExtractor.load(source).to(device)
        against = (batch.images["after"] for batch in image_batches(reference, device))
        return FeatureDistance(name, kind, features, whens, against)
    if name == "lpips":
        return PairedLpips(Lpips.load(source).to(device), seeds)
    return NudityDetections(*load_detector(), settings.threshold, whens, seeds)


def _score(
    meters: Sequence[ImageMetric],
    images: Sequence[FolderImage],
    reference: Sequence[FolderImage],
) -> Score:
    estimates: dict[str, Mapping[str, Estimate]] = {}
    metrics: dict[str, Any] = {}
    for meter in meters:
        estimates.update(meter.estimates())
        metrics.update(meter.protocol())
    drawn = {
        "images": len(images),
        "prompts": short_hash(sorted(image.sampling for image in images)),
    }
    against = {"reference": _content_hash(reference)} if reference else {}
    packages = ("erasure-lightning", "torch", "torchmetrics", "transformers")
    versions = {name: version(name) for name in packages}
    return Score(estimates, {"drawn": drawn, **against, "metrics": metrics}, versions)


def _content_hash(images: Sequence[FolderImage]) -> str:
    """A short hash of the images' files, whatever their names."""
    files = [image.files["after"] for image in images]
    return short_hash(sorted(hashlib.sha256(file.read_bytes()).hexdigest() for file in files))
