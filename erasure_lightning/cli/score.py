"""``erasure score``: published metrics on finished pictures, each with its interval and its
protocol.
"""

import argparse
import csv
import difflib
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy
import torch
from rich.console import Console
from torch import Tensor

from erasure_lightning.api.quiet import silence
from erasure_lightning.callbacks.image_writer import MANIFEST_FILE
from erasure_lightning.cli.arguments import Arguments
from erasure_lightning.data.image_files import IMAGE_SUFFIXES, read_image
from erasure_lightning.errors import ErasureError
from erasure_lightning.files.text_files import read_prompts_file
from erasure_lightning.files.writing import SCORE_FILE
from erasure_lightning.metrics.distribution_distance import FrechetDistance, KernelDistance
from erasure_lightning.metrics.estimates import Estimate
from erasure_lightning.metrics.features import FeatureExtractor
from erasure_lightning.metrics.image_metrics import (
    ClipScore,
    FeatureDistance,
    ImageMetric,
    LabelAccuracy,
    MetricBatch,
    NudityDetections,
    PairedLpips,
)
from erasure_lightning.metrics.nudity import load_detector
from erasure_lightning.metrics.perceptual import Lpips
from erasure_lightning.metrics.protocol import short_hash
from erasure_lightning.metrics.score import Score, score_table
from erasure_lightning.metrics.scorer import Scorer

#: What each metric needs behind ``=``; empty where nothing.
METRICS = {
    "clip": "a folder with a CLIP or SigLIP",
    "accuracy": "a folder with a CLIP or SigLIP",
    "fid": "a folder with a vision model",
    "kid": "a folder with a vision model",
    "lpips": "a safetensors file with AlexNet's convolutions",
    "nudenet": "",
}

#: Metrics that read prompts, and such that compare with originals.
_READING, _PAIRED = ("clip", "accuracy"), ("lpips",)

#: Pictures looked at side by side; and how few have an interval by every metric.
BATCH, LEAST = 16, 3


class Picture(NamedTuple):
    """One picture, or the pair of them that ``predict`` draws.

    Args:
        prompt: What it was asked for with; empty where nobody knows.
        seed: Of its noise; a number of its own where nobody knows.
        files: By ``before`` and ``after``.
        drawn: Everything the manifest says of how it was drawn.
    """

    prompt: str
    seed: int
    files: dict[str, Path]
    drawn: tuple[str, ...]


def score(argv: list[str]) -> None:
    """Score pictures.

    Raises:
        ErasureError: If pictures, weights or a package are missing, or something would be
            overwritten.
    """
    options = _parser().parse_args(argv)
    metrics = dict(_metric(given) for given in options.metric)
    pictures = read_pictures(options.folder)
    reference = read_pictures(options.reference) if options.reference else []
    out = options.out or options.folder / SCORE_FILE
    _check(metrics, pictures, options, out)
    silence()
    device = torch.accelerator.current_accelerator() or torch.device("cpu")
    gauges = [
        _gauge(name, where, pictures, reference, options, device) for name, where in metrics.items()
    ]
    for batch in _batches(pictures, device):
        for gauge in gauges:
            gauge.update(batch)
    result = _score(gauges, pictures, reference)
    result.save(out)
    Console().print(score_table({"": result}))
    print(f"Scored {len(pictures)} pictures; the figures and how they came about are in {out}.")


def _parser() -> Arguments:
    parser = Arguments("erasure score", description="Score finished pictures by published metrics.", epilog=(
        "Nothing is downloaded unless you name a Hub id (owner/model) in place of a folder. Metrics: "
        + "; ".join(f"{name}={needs}" if needs else name for name, needs in METRICS.items()) + "."
    ))  # fmt: skip
    parser.add_argument(
        "folder", type=Path, metavar="FOLDER", help="what predict wrote, or a folder of pictures"
    )
    parser.add_argument(
        "--metric",
        action="append",
        required=True,
        metavar="NAME[=WHERE]",
        help="may stand several times",
    )
    parser.add_argument(
        "--reference", type=Path, metavar="DIR", help="real pictures that fid and kid compare with"
    )
    parser.add_argument(
        "--labels", metavar="FILE", help="of accuracy: what a picture may show, one a line"
    )
    parser.add_argument(
        "--template", default="a photo of a {}", help="of accuracy: what a label is put into"
    )
    parser.add_argument(
        "--threshold", type=float, default=0.6, help="of nudenet: least score that counts (0.6)"
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help=f"a new file; FOLDER/{SCORE_FILE} by default"
    )
    return parser


def _metric(given: str) -> tuple[str, str]:
    name, _, where = given.partition("=")
    if name not in METRICS:
        near = difflib.get_close_matches(name, METRICS, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ErasureError(f"unknown metric {name!r}.{hint} Known: {', '.join(METRICS)}.")
    if METRICS[name] and not where:
        raise ErasureError(f"{name} needs {METRICS[name]}: give --metric {name}=PATH.")
    if where and not METRICS[name]:
        raise ErasureError(
            f"{name} brings what it needs along; found {given!r}. Give --metric {name}."
        )
    return name, where


def read_pictures(folder: Path) -> list[Picture]:
    """What ``predict`` wrote into a folder, or else the pictures in it.

    Raises:
        ErasureError: If there is no such folder, it holds no pictures, or one is missing.
    """
    if not folder.is_dir():
        raise ErasureError(f"erasure score needs a folder of pictures; found none at {folder}.")
    if (folder / MANIFEST_FILE).is_file():
        with (folder / MANIFEST_FILE).open(newline="", encoding="utf-8") as file:
            pictures = [_row(folder, row) for row in csv.DictReader(file)]
    else:
        files = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
        pictures = [Picture("", i, {"after": path}, ()) for i, path in enumerate(files)]
    if not pictures:
        raise ErasureError(
            f"erasure score needs PNG or JPEG files, or predict's {MANIFEST_FILE}; found none in"
            f" {folder}."
        )
    if missing := [
        path for picture in pictures for path in picture.files.values() if not path.is_file()
    ]:
        raise ErasureError(
            f"{folder / MANIFEST_FILE} names {missing[0].relative_to(folder)}, which is not there."
        )
    return _apart(pictures)


def _row(folder: Path, row: dict[str, str]) -> Picture:
    try:
        files = {"before": folder / row["original"], "after": folder / row["edited"]}
        size = (row.get("height", ""), row.get("width", ""))  # not in manifests of old
        drawn = (row["prompt"], row["evaluation_seed"], row["steps"], row["guidance"], *size)
        return Picture(row["prompt"], int(row["evaluation_seed"]), files, drawn)
    except (KeyError, TypeError, ValueError) as error:
        raise ErasureError(
            f"{folder / MANIFEST_FILE} is not as predict writes it ({error})."
        ) from error


def _apart(pictures: list[Picture]) -> list[Picture]:
    """With one seed for all, there is no interval over seeds, and each picture counts as
    independent.
    """
    if len({picture.seed for picture in pictures}) > 1:
        return pictures
    return [picture._replace(seed=i) for i, picture in enumerate(pictures)]


def _check(
    metrics: dict[str, str], pictures: Sequence[Picture], options: argparse.Namespace, out: Path
) -> None:
    """Raise for what is missing before any weights are loaded."""
    if out.exists():
        raise ErasureError(
            f"{out} is there already, and nothing is overwritten. Choose another file with --out."
        )
    if len(pictures) < LEAST:
        raise ErasureError(
            f"erasure score needs at least {LEAST} pictures for an interval; found {len(pictures)}."
        )
    plain = "before" not in pictures[0].files
    if plain and (found := [name for name in metrics if name in _READING + _PAIRED]):
        raise ErasureError(
            f"{found[0]} needs what predict writes (pictures before and after, and their prompts);"
            f" found no {MANIFEST_FILE} in {options.folder}."
        )
    if (
        plain
        and not options.reference
        and (found := [name for name in metrics if name in ("fid", "kid")])
    ):
        raise ErasureError(
            f"{found[0]} of a plain folder needs pictures to compare with: give --reference FOLDER."
        )
    if "accuracy" in metrics and not options.labels:
        raise ErasureError(
            "accuracy needs what a picture may show: give --labels FILE, a text file of one a line."
        )
    if "{}" not in options.template:
        raise ErasureError(f"--template needs {{}} for the label; found {options.template!r}.")


def _gauge(
    name: str,
    where: str,
    pictures: Sequence[Picture],
    reference: Sequence[Picture],
    options: Any,
    device: torch.device,
) -> ImageMetric:
    whens, seeds = list(pictures[0].files), sorted({picture.seed for picture in pictures})
    if name == "clip":
        return ClipScore(Scorer.load(where).to(device), whens, seeds)
    if name == "accuracy":
        labels = read_prompts_file(options.labels, "accuracy")
        return LabelAccuracy(Scorer.load(where).to(device), labels, options.template, whens, seeds)
    if name in ("fid", "kid"):
        against = (batch.images["after"] for batch in _batches(reference, device))
        return FeatureDistance(
            name,
            FrechetDistance if name == "fid" else KernelDistance,
            FeatureExtractor.load(where).to(device),
            whens,
            against,
        )
    if name == "lpips":
        return PairedLpips(Lpips.load(where).to(device), seeds)
    return NudityDetections(*load_detector(), options.threshold, whens, seeds)


def _batches(pictures: Sequence[Picture], device: torch.device) -> Iterator[MetricBatch]:
    """Pictures of one size side by side."""
    waiting: list[Picture] = []
    read_already: list[dict[str, Tensor]] = []
    for picture in pictures:
        tensors = {when: _tensor(path) for when, path in picture.files.items()}
        if waiting and (len(waiting) == BATCH or _sizes(tensors) != _sizes(read_already[0])):
            yield _batch(waiting, read_already, device)
            waiting, read_already = [], []
        waiting.append(picture)
        read_already.append(tensors)
    if waiting:
        yield _batch(waiting, read_already, device)


def _batch(
    pictures: Sequence[Picture], tensors: Sequence[dict[str, Tensor]], device: torch.device
) -> MetricBatch:
    whens = list(tensors[0])
    return MetricBatch(
        [picture.prompt for picture in pictures],
        [picture.seed for picture in pictures],
        {when: torch.stack([each[when] for each in tensors]).to(device) for when in whens},
        {when: [picture.files[when] for picture in pictures] for when in whens},
    )


def _sizes(tensors: dict[str, Tensor]) -> list[torch.Size]:
    return [tensor.shape for tensor in tensors.values()]


def _tensor(path: Path) -> Tensor:
    return torch.tensor(numpy.asarray(read_image(path))).permute(2, 0, 1).float() / 255


def _score(
    gauges: Sequence[ImageMetric], pictures: Sequence[Picture], reference: Sequence[Picture]
) -> Score:
    estimates: dict[str, Mapping[str, Estimate]] = {}
    how: dict[str, Any] = {}
    for gauge in gauges:
        estimates.update(gauge.estimates())
        how.update(gauge.protocol())
    drawn = {
        "pictures": len(pictures),
        "prompts": short_hash(sorted(picture.drawn for picture in pictures)),
    }
    against = {"reference": _content(reference)} if reference else {}
    versions = {
        name: version(name)
        for name in ("erasure-lightning", "torch", "torchmetrics", "transformers")
    }
    return Score(estimates, {"drawn": drawn, **against, "metrics": how}, versions)


def _content(pictures: Sequence[Picture]) -> str:
    """A short hash of the pictures themselves, whatever they are called."""
    digests = sorted(
        hashlib.sha256(picture.files["after"].read_bytes()).hexdigest() for picture in pictures
    )
    return short_hash(digests)
