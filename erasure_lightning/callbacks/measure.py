"""`Measure`: what an edit took away, what it left alone, and how sure that is."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torchmetrics import Metric

from erasure_lightning.callbacks.paired_images import PairedImages
from erasure_lightning.concepts.vocabulary import Vocabulary
from erasure_lightning.data.image_plan import ImageRequest
from erasure_lightning.distributed.collectives import all_gather_items
from erasure_lightning.metrics.estimates import Estimate
from erasure_lightning.metrics.groups import ERASING, QUESTIONS, STRUCTURE
from erasure_lightning.metrics.protocol import Protocol, Result, short_hash
from erasure_lightning.metrics.scorer import Scorer
from erasure_lightning.metrics.seed_statistics import (
    FeatureSimilarity,
    ImageText,
    PixelDistance,
    Recognized,
)
from erasure_lightning.metrics.zero_shot import ZeroShotClassifier
from erasure_lightning.training.base import ErasureModule

NO_SCORER = (
    "Measure needs a scorer to recognise things; found none, so only pixels are compared. Give it"
    " CLIP or SigLIP: --trainer.callbacks+=Measure --trainer.callbacks.scorer=FOLDER (or a Hub id:"
    " openai/clip-vit-base-patch32)."
)


class Measure(PairedImages):
    """Measures an edit on the pictures of ``test`` or ``validate``.

    Writes ``metrics.json`` into the run's folder, logs the means as ``measure/...`` and prints a
    table. The figures of the last run are its ``result``.

    Args:
        scorer: Folder or Hub id of a CLIP or SigLIP that tells what a picture shows; the world's
            own by default. Where there is neither, only pixels are compared.
        show: Whether the table is printed.
    """

    def __init__(self, scorer: str | None = None, show: bool = True) -> None:
        self.scorer = scorer
        self.show = show
        self.result: Result | None = None

    def begin(self, module: ErasureModule, shots: Sequence[ImageRequest]) -> None:
        """Load the scorer and embed the labels."""
        world = module.backbone.world
        source = self.scorer or (world.scorer if world else None)
        scorer = Scorer.load(source).to(module.device) if source else None
        self._gauge = EditMetrics(scorer, Vocabulary(world, module.concepts), shots, module.device)

    def take(self, shots: Sequence[ImageRequest], original: Tensor, edited: Tensor) -> None:
        """Measure a batch of pictures."""
        self._gauge.update(shots, original, edited)

    def finish(self, trainer: Trainer, module: ErasureModule) -> None:
        """Bring the ranks' figures together; log, write and print them."""
        edit = module.description()
        self.result = result = Result(
            self._gauge.protocol(module, edit), edit, self._gauge.estimates()
        )
        del self._gauge  # A scorer need not stay in memory.
        module.log_dict(_means(result), sync_dist=True)
        if trainer.is_global_zero:
            result.save(Path(trainer.default_root_dir) / "metrics.json")
            if self.show:
                Console().print(table(result))


class EditMetrics:
    """All metrics of one run.

    Args:
        scorer: Tells what pictures show, if there is one.
        vocabulary: What the model draws, and what of it is erased.
        shots: All pictures that any rank may measure.
        device: Where the pictures are.
    """

    def __init__(
        self,
        scorer: Scorer | None,
        vocabulary: Vocabulary,
        shots: Sequence[ImageRequest],
        device: torch.device,
    ) -> None:
        self.scorer = scorer
        self.seeds = sorted({s.seed for s in shots})
        self.groups = [group for group in QUESTIONS if group in {s.group for s in shots}]
        answers = sorted({s.answer for s in shots if s.group not in ERASING})
        self.judge = ZeroShotClassifier(scorer, vocabulary, answers) if scorer else None
        self.labels = self.judge.labels if self.judge else vocabulary.labels
        self.metrics = {key: metric.to(device) for key, metric in self._metrics().items()}
        self.measured: list[ImageRequest] = []
        self.side = 0

    def _metrics(self) -> dict[tuple[str, str, str], Metric]:
        """By group, name, and before or after."""
        made: dict[tuple[str, str, str], Metric] = {}
        for group in self.groups if self.scorer else ():
            for when in ("before", "after"):
                made[group, "recognized", when] = Recognized(self.seeds)
                made[group, "image_text", when] = ImageText(self.seeds)
        if "specificity" in self.groups:
            if self.scorer:
                made["structure", "similarity", "after"] = FeatureSimilarity(self.seeds)
            made["structure", "distance", "after"] = PixelDistance(self.seeds)
        return made

    def update(self, shots: Sequence[ImageRequest], original: Tensor, edited: Tensor) -> None:
        """Measure pictures ``(B, 3, H, W)`` of both models."""
        self.measured += shots
        self.side = edited.shape[-1]
        rows = {
            group: [i for i, s in enumerate(shots) if s.group == group] for group in self.groups
        }
        features = None
        if self.scorer:
            features = self.scorer.images(original), self.scorer.images(edited)
            for group, chosen in rows.items():
                for when, images in zip(("before", "after"), features, strict=True):
                    self._recognize(group, when, [shots[i] for i in chosen], images[chosen])
        if kept := rows.get("specificity"):
            seeds = [shots[i].seed for i in kept]
            self.metrics["structure", "distance", "after"].update(
                edited[kept], original[kept], seeds
            )
            if features:
                self.metrics["structure", "similarity", "after"].update(
                    features[1][kept], features[0][kept], seeds
                )

    def _recognize(
        self, group: str, when: str, shots: Sequence[ImageRequest], images: Tensor
    ) -> None:
        if not shots:
            return
        assert self.judge is not None
        seeds = [s.seed for s in shots]
        questions = [self.judge.question(group, s.answer) for s in shots]
        texts = torch.stack([self.judge.text(s.prompt) for s in shots])
        self.metrics[group, "recognized", when].update(images, questions, seeds)
        self.metrics[group, "image_text", when].update(images, texts, seeds)

    def estimates(self) -> dict[str, dict[str, dict[str, Estimate]]]:
        """What was measured on all ranks, without what no picture was drawn for. Every rank must
        call it.
        """
        found: dict[str, dict[str, dict[str, Estimate]]] = {}
        for (group, name, when), metric in self.metrics.items():
            estimate = metric.compute()
            if estimate.pictures:
                found.setdefault(group, {}).setdefault(name, {})[when] = estimate
        return found

    def protocol(self, module: ErasureModule, edit: Mapping[str, Any]) -> Protocol:
        """How it was measured. Every rank must call it."""
        shots = sorted(set(all_gather_items(self.measured)))
        return Protocol(
            prompts={
                group: sorted({s.prompt for s in shots if s.group == group})
                for group in self.groups
            },
            seeds=sorted({s.seed for s in shots}),
            steps=shots[0].steps,
            guidance=shots[0].guidance,
            size=self.side,
            sampler=module.backbone.sampler_name,
            scorer_fingerprint=self.scorer.fingerprint() if self.scorer else "",
            backbone_fingerprint=edit["backbone_fingerprint"],
            vocabulary=short_hash(self.labels),
            backbone=edit["backbone"],
            scorer=self.scorer.name if self.scorer else "",
            versions=edit["versions"],
        )


def _means(result: Result) -> dict[str, float]:
    """``measure/efficacy_before``, ``measure/efficacy_image_text_after``,
    ``measure/structure_distance``, ...
    """
    means = {}
    for group, metrics in result.estimates.items():
        for name, whens in metrics.items():
            for when, estimate in whens.items():
                parts = [
                    group,
                    *([] if name == "recognized" else [name]),
                    *([] if group == "structure" else [when]),
                ]
                means["measure/" + "_".join(parts)] = estimate.mean
    overall = {f"measure/overall_{when}": result.overall(when) for when in ("before", "after")}
    return means | {name: value for name, value in overall.items() if value is not None}


def table(result: Result) -> Table:
    """The figures for people: a row a question, 95 % intervals over seeds, and which direction is
    good.
    """
    seeds = len(result.protocol.seeds)
    made = Table(
        title=f"The edit, measured with {seeds} seeds (95 % intervals)", caption=_caption(result)
    )
    for column in ("", "what it asks", "before", "after", "better"):
        made.add_column(column)
    for group, metrics in result.estimates.items():
        if group == "structure":
            continue
        before, after = (_narrow(metrics["recognized"][when]) for when in ("before", "after"))
        made.add_row(
            group, QUESTIONS[group], before, after, "lower" if group in ERASING else "higher"
        )
    for name, whens in result.estimates.get("structure", {}).items():
        made.add_row(
            "structure", STRUCTURE[name][0], "", _narrow(whens["after"]), STRUCTURE[name][1]
        )
    return made


def _narrow(estimate: Estimate) -> str:
    """An estimate on two lines, so that the table fits 80 columns."""
    return str(estimate).replace(" [", "\n[")


def _caption(result: Result) -> str:
    if not result.protocol.scorer:
        return NO_SCORER
    before, after = (result.overall(when) for when in ("before", "after"))
    return (
        ""
        if before is None or after is None
        else f"overall (harmonic mean): {before:.3f} before, {after:.3f} after"
    )
