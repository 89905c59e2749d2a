"""Gauges: each looks at finished pictures in its own way, and says how it did."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from erasure_lightning.errors import ErasureError
from erasure_lightning.files.words import folded
from erasure_lightning.metrics.distribution_distance import SetDistance
from erasure_lightning.metrics.estimates import Estimate
from erasure_lightning.metrics.features import Features
from erasure_lightning.metrics.nudity import COUNTED, EXPLICIT, Detector, Exposure
from erasure_lightning.metrics.perceptual import Lpips, PerceptualDistance
from erasure_lightning.metrics.protocol import short_hash
from erasure_lightning.metrics.scorer import Scorer
from erasure_lightning.metrics.seed_statistics import ImageText, Question, Recognized

#: Estimates by metric, and ``before`` or ``after``.
Figures = Mapping[str, Mapping[str, Estimate]]


class MetricBatch(NamedTuple):
    """Some pictures of one size.

    Args:
        prompts: What each was asked for with; empty where nobody knows.
        seeds: What tells independent pictures apart.
        pictures: ``(B, 3, H, W)`` in 0..1, by ``before`` and ``after``.
        files: The same on disk.
    """

    prompts: Sequence[str]
    seeds: Sequence[int]
    pictures: Mapping[str, Tensor]
    files: Mapping[str, Sequence[Path]]


class ImageMetric(ABC):
    """Measures pictures."""

    @abstractmethod
    def update(self, batch: MetricBatch) -> None:
        """Count pictures in."""

    @abstractmethod
    def figures(self) -> Figures:
        """What was measured."""

    @abstractmethod
    def protocol(self) -> dict[str, Any]:
        """How."""


class ClipScore(ImageMetric):
    """``clip``: cosine of a picture and its prompt, -1..1 (Hessel et al. 2021 without their factor
    of 2.5).

    Args:
        scorer: Sees both.
        whens: ``before``, ``after``, or both.
        seeds: All there are.
    """

    def __init__(self, scorer: Scorer, whens: Sequence[str], seeds: Sequence[int]) -> None:
        self.scorer = scorer
        self.means = {when: ImageText(seeds).to(scorer.model.device) for when in whens}

    @torch.no_grad()
    def update(self, batch: MetricBatch) -> None:
        """Count pictures in."""
        texts = self.scorer.texts(batch.prompts)
        for when, mean in self.means.items():
            mean.update(self.scorer.images(batch.pictures[when]), texts, batch.seeds)

    def figures(self) -> Figures:
        """Mean cosine."""
        return {"clip": {when: mean.compute() for when, mean in self.means.items()}}

    def protocol(self) -> dict[str, Any]:
        """The scorer."""
        return {"clip": {"weights": self.scorer.fingerprint()}}


class Accuracy(ImageMetric):
    """``accuracy``: share of pictures that show the label their prompt names, out of all labels
    (zero-shot).

    Args:
        scorer: Sees pictures and labels.
        labels: What a picture may show; where a prompt names several, the longest is meant. Others
            are not counted.
        template: What a label is put into, with ``{}``.
        whens: ``before``, ``after``, or both.
        seeds: All there are.
    """

    def __init__(
        self,
        scorer: Scorer,
        labels: Sequence[str],
        template: str,
        whens: Sequence[str],
        seeds: Sequence[int],
    ) -> None:
        self.scorer = scorer
        self.labels = labels
        self.template = template
        with torch.no_grad():
            self.texts = scorer.texts([template.format(label) for label in labels])
        self.shares = {when: Recognized(seeds).to(self.texts.device) for when in whens}

    def named(self, prompt: str) -> str | None:
        """The label a prompt names, as whole words in any case."""
        words = f" {' '.join(''.join(c if c.isalnum() else ' ' for c in folded(prompt)).split())} "
        inside = [label for label in self.labels if f" {folded(label)} " in words]
        return max(inside, key=len, default=None)

    @torch.no_grad()
    def update(self, batch: MetricBatch) -> None:
        """Count pictures in."""
        named = [self.named(prompt) for prompt in batch.prompts]
        rows = [i for i, label in enumerate(named) if label is not None]
        right = [
            torch.tensor([label == named[i] for label in self.labels], device=self.texts.device)
            for i in rows
        ]
        questions, seeds = (
            [Question(self.texts, mask) for mask in right],
            [batch.seeds[i] for i in rows],
        )
        for when, share in self.shares.items() if rows else ():
            share.update(self.scorer.images(batch.pictures[when][rows]), questions, seeds)

    def figures(self) -> Figures:
        """Share of right answers.

        Raises:
            ErasureError: If no prompt named a label.
        """
        found = {
            when: share.compute() for when, share in self.shares.items() if share.update_called
        }
        if not found:
            raise ErasureError(
                "accuracy needs prompts that name a label; none names"
                f" {', '.join(self.labels[:3])}, ..."
            )
        return {"accuracy": found}

    def protocol(self) -> dict[str, Any]:
        """The scorer and the labels."""
        asked = {"labels": short_hash(list(self.labels)), "template": self.template}
        return {"accuracy": {"weights": self.scorer.fingerprint(), **asked}}


class Distances(ImageMetric):
    """``fid`` or ``kid``: how far the pictures are, as a set, from a reference, or the edited from
    the original.

    Args:
        name: Which of the two.
        kind: Makes what computes it.
        network: Sees the pictures.
        whens: ``before``, ``after``, or both.
        reference: Batches of pictures ``(B, 3, H, W)``; without any, ``before`` is the reference of
            ``after``.
    """

    def __init__(
        self,
        name: str,
        kind: Callable[[], SetDistance],
        network: Features,
        whens: Sequence[str],
        reference: Iterable[Tensor],
    ) -> None:
        self.name = name
        self.network = network
        self.compared = {when: kind() for when in whens}
        self.pairs = True
        for pictures in reference:
            self.pairs = False
            features = network(pictures)
            for distance in self.compared.values():
                distance.refer(features)
        if self.pairs:
            self.compared = {"after": kind()}

    def update(self, batch: MetricBatch) -> None:
        """Count pictures in."""
        for when, distance in self.compared.items():
            distance.update(self.network(batch.pictures[when]), batch.seeds)
            if self.pairs:
                distance.refer(self.network(batch.pictures["before"]))

    def figures(self) -> Figures:
        """The distances."""
        return {self.name: {when: distance.compute() for when, distance in self.compared.items()}}

    def protocol(self) -> dict[str, Any]:
        """The network."""
        return {
            self.name: {
                "weights": self.network.fingerprint(),
                "against": "before" if self.pairs else "reference",
            }
        }


class Perceptual(ImageMetric):
    """``lpips``: how far each edited picture is from the original's at the same seed.

    Args:
        lpips: Tells.
        seeds: All there are.
    """

    def __init__(self, lpips: Lpips, seeds: Sequence[int]) -> None:
        self.lpips = lpips
        self.mean = PerceptualDistance(lpips, seeds).to(lpips.shift.device)

    def update(self, batch: MetricBatch) -> None:
        """Count pairs in."""
        self.mean.update(batch.pictures["after"], batch.pictures["before"], batch.seeds)

    def figures(self) -> Figures:
        """Mean distance."""
        return {"lpips": {"after": self.mean.compute()}}

    def protocol(self) -> dict[str, Any]:
        """The network."""
        return {"lpips": {"weights": self.lpips.fingerprint()}}


class Nudity(ImageMetric):
    """``nudenet``: share of explicit pictures, and how often each part of a body is seen.

    Args:
        detector: Sees them.
        described: What a protocol says of it.
        threshold: Least score that counts.
        whens: ``before``, ``after``, or both.
        seeds: All there are.
    """

    def __init__(
        self,
        detector: Detector,
        described: dict[str, Any],
        threshold: float,
        whens: Sequence[str],
        seeds: Sequence[int],
    ) -> None:
        self.described = described | {
            "threshold": threshold,
            "explicit": list(EXPLICIT),
            "counted": list(COUNTED),
        }
        self.exposures = {when: Exposure(detector, threshold, seeds) for when in whens}

    def update(self, batch: MetricBatch) -> None:
        """Count pictures in."""
        for when, exposure in self.exposures.items():
            exposure.update(batch.files[when], batch.seeds)

    def figures(self) -> Figures:
        """``nudenet explicit``, and ``nudenet LABEL``."""
        found = {when: exposure.estimates() for when, exposure in self.exposures.items()}
        names = next(iter(found.values()))
        return {
            f"nudenet {name}": {when: each[name] for when, each in found.items()} for name in names
        }

    def protocol(self) -> dict[str, Any]:
        """The detector."""
        return {"nudenet": self.described}
