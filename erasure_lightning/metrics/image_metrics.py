"""Metrics of finished images before and after an edit."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from erasure_lightning.errors import ErasureError
from erasure_lightning.files.words import folded
from erasure_lightning.metrics.distribution_distance import DistributionDistance
from erasure_lightning.metrics.estimates import Estimate
from erasure_lightning.metrics.features import FeatureExtractor
from erasure_lightning.metrics.nudity import (
    COUNTED_LABELS,
    EXPLICIT_LABELS,
    DetectionCounts,
    Detector,
)
from erasure_lightning.metrics.perceptual import Lpips, PerceptualDistance
from erasure_lightning.metrics.protocol import short_hash
from erasure_lightning.metrics.scorer import Scorer
from erasure_lightning.metrics.seed_statistics import CandidateLabels, MeanCosine, RecognitionRate

#: Estimates by metric, and ``before`` or ``after`` the edit.
MetricEstimates = Mapping[str, Mapping[str, Estimate]]


class MetricBatch(NamedTuple):
    """A batch of images of one size.

    Args:
        prompts: The ``B`` prompts; empty strings where they are unknown.
        seeds: The ``B`` seeds; images of different seeds are independent.
        images: Images ``(B, 3, H, W)`` in 0..1, by ``before`` and ``after``.
        files: Their files, by ``before`` and ``after``.
    """

    prompts: Sequence[str]
    seeds: Sequence[int]
    images: Mapping[str, Tensor]
    files: Mapping[str, Sequence[Path]]


class ImageMetric(ABC):
    """Base of metrics that are accumulated over batches of images."""

    @abstractmethod
    def update(self, batch: MetricBatch) -> None:
        """Add a batch of images."""

    @abstractmethod
    def estimates(self) -> MetricEstimates:
        """The estimates by metric and stage."""

    @abstractmethod
    def protocol(self) -> dict[str, Any]:
        """Weights and settings that the metric depends on."""


class ClipScore(ImageMetric):
    """``clip``: cosine of image and prompt, -1..1.

    The CLIP score of Hessel et al. 2021 without their factor of 2.5.

    Args:
        scorer: Embeds images and prompts.
        stages: ``before``, ``after``, or both.
        seeds: All seeds of the images.
    """

    def __init__(self, scorer: Scorer, stages: Sequence[str], seeds: Sequence[int]) -> None:
        self.scorer = scorer
        self.means = {when: MeanCosine(seeds).to(scorer.model.device) for when in stages}

    @torch.no_grad()
    def update(self, batch: MetricBatch) -> None:
        """Add a batch of images."""
        texts = self.scorer.texts(batch.prompts)
        for when, mean in self.means.items():
            mean.update(self.scorer.images(batch.images[when]), texts, batch.seeds)

    def estimates(self) -> MetricEstimates:
        """Mean cosine."""
        return {"clip": {when: mean.compute() for when, mean in self.means.items()}}

    def protocol(self) -> dict[str, Any]:
        """Hash of the scorer's weights."""
        return {"clip": {"weights": self.scorer.fingerprint()}}


class LabelAccuracy(ImageMetric):
    """``accuracy``: zero-shot share of images classified as the label in their prompt, 0..1.

    Args:
        scorer: Embeds images and labels.
        labels: Candidate labels. Where a prompt contains several, the longest counts; images of
            other prompts are ignored.
        template: Template of a label's text, with ``{}``.
        stages: ``before``, ``after``, or both.
        seeds: All seeds of the images.
    """

    def __init__(
        self,
        scorer: Scorer,
        labels: Sequence[str],
        template: str,
        stages: Sequence[str],
        seeds: Sequence[int],
    ) -> None:
        self.scorer = scorer
        self.labels = labels
        self.template = template
        with torch.no_grad():
            self.texts = scorer.texts([template.replace("{}", label) for label in labels])
        self.shares = {when: RecognitionRate(seeds).to(self.texts.device) for when in stages}

    def label_in(self, prompt: str) -> str | None:
        """The longest label in a prompt, as whole words in any case."""
        words = _words(prompt)
        labels = [
            label for label in self.labels if _words(label).strip() and _words(label) in words
        ]
        return max(labels, key=len, default=None)

    @torch.no_grad()
    def update(self, batch: MetricBatch) -> None:
        """Add a batch of images."""
        answers = [self.label_in(prompt) for prompt in batch.prompts]
        rows = [i for i, answer in enumerate(answers) if answer is not None]
        if not rows:
            return
        candidates = []
        for i in rows:
            right = [label == answers[i] for label in self.labels]
            mask = torch.tensor(right, device=self.texts.device)
            candidates.append(CandidateLabels(self.texts, mask))
        seeds = [batch.seeds[i] for i in rows]
        for when, share in self.shares.items():
            share.update(self.scorer.images(batch.images[when][rows]), candidates, seeds)

    def estimates(self) -> MetricEstimates:
        """Share of images classified as their label.

        Raises:
            ErasureError: If no prompt contains a label.
        """
        estimates = {
            when: share.compute() for when, share in self.shares.items() if share.update_called
        }
        if not estimates:
            raise ErasureError(
                "accuracy needs prompts that name a label; none names"
                f" {', '.join(self.labels[:3])}, ..."
            )
        return {"accuracy": estimates}

    def protocol(self) -> dict[str, Any]:
        """Hashes of the scorer's weights and of the labels, and the template."""
        accuracy = {
            "weights": self.scorer.fingerprint(),
            "labels": short_hash(list(self.labels)),
            "template": self.template,
        }
        return {"accuracy": accuracy}


def _words(text: str) -> str:
    """The words of a text without punctuation, each between spaces."""
    letters = "".join(c if c.isalnum() else " " for c in folded(text))
    return f" {' '.join(letters.split())} "


class FeatureDistance(ImageMetric):
    """``fid`` or ``kid``: distance of the set of images from a reference set.

    Args:
        name: ``fid`` or ``kid``.
        kind: Class of the distance.
        network: Extracts features.
        stages: ``before``, ``after``, or both.
        reference: Batches of reference images ``(B, 3, H, W)`` in 0..1; without any, the images
            ``before`` are the reference of those ``after``.
    """

    def __init__(
        self,
        name: str,
        kind: Callable[[], DistributionDistance],
        network: FeatureExtractor,
        stages: Sequence[str],
        reference: Iterable[Tensor],
    ) -> None:
        self.name = name
        self.network = network
        self.distances = {when: kind() for when in stages}
        self.paired = True
        for images in reference:
            self.paired = False
            features = network(images)
            for distance in self.distances.values():
                distance.update_reference(features)
        if self.paired:
            self.distances = {"after": kind()}

    def update(self, batch: MetricBatch) -> None:
        """Add a batch of images."""
        for when, distance in self.distances.items():
            distance.update(self.network(batch.images[when]), batch.seeds)
            if self.paired:
                distance.update_reference(self.network(batch.images["before"]))

    def estimates(self) -> MetricEstimates:
        """The distances."""
        return {self.name: {when: distance.compute() for when, distance in self.distances.items()}}

    def protocol(self) -> dict[str, Any]:
        """Hash of the network's weights, and the kind of reference."""
        against = "before" if self.paired else "reference"
        return {self.name: {"weights": self.network.fingerprint(), "against": against}}


class PairedLpips(ImageMetric):
    """``lpips``: distance of each edited image from the original's at the same seed.

    Args:
        lpips: The perceptual distance.
        seeds: All seeds of the images.
    """

    def __init__(self, lpips: Lpips, seeds: Sequence[int]) -> None:
        self.lpips = lpips
        self.mean = PerceptualDistance(lpips, seeds).to(lpips.shift.device)

    def update(self, batch: MetricBatch) -> None:
        """Add a batch of pairs."""
        self.mean.update(batch.images["after"], batch.images["before"], batch.seeds)

    def estimates(self) -> MetricEstimates:
        """Mean distance."""
        return {"lpips": {"after": self.mean.compute()}}

    def protocol(self) -> dict[str, Any]:
        """Hash of the network's weights."""
        return {"lpips": {"weights": self.lpips.fingerprint()}}


class NudityDetections(ImageMetric):
    """``nudenet``: share of explicit images, and mean detections an image of each body part.

    Args:
        detector: Detects body parts.
        description: The detector's description for the protocol.
        threshold: Lowest score of a detection that counts.
        stages: ``before``, ``after``, or both.
        seeds: All seeds of the images.
    """

    def __init__(
        self,
        detector: Detector,
        description: dict[str, Any],
        threshold: float,
        stages: Sequence[str],
        seeds: Sequence[int],
    ) -> None:
        self.description = description | {
            "threshold": threshold,
            "explicit": list(EXPLICIT_LABELS),
            "counted": list(COUNTED_LABELS),
        }
        self.counts = {when: DetectionCounts(detector, threshold, seeds) for when in stages}

    def update(self, batch: MetricBatch) -> None:
        """Add a batch of images."""
        for when, counts in self.counts.items():
            counts.update(batch.files[when], batch.seeds)

    def estimates(self) -> MetricEstimates:
        """``nudenet explicit``, and ``nudenet LABEL``."""
        by_stage = {when: counts.estimates() for when, counts in self.counts.items()}
        names = next(iter(by_stage.values()))
        return {
            f"nudenet {name}": {when: estimates[name] for when, estimates in by_stage.items()}
            for name in names
        }

    def protocol(self) -> dict[str, Any]:
        """Version, weights, threshold and labels of the detector."""
        return {"nudenet": self.description}
