"""`Measure`: metrics of an edit, with intervals over seeds."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torchmetrics import Metric

from erasure_lightning.callbacks.paired_images import PairedImages
from erasure_lightning.concepts.vocabulary import Vocabulary
from erasure_lightning.data.image_plan import ImageRequest
from erasure_lightning.distributed.collectives import all_gather_items
from erasure_lightning.metrics.estimates import Estimate
from erasure_lightning.metrics.groups import ERASURE_GROUPS, GROUP_QUESTIONS, STRUCTURE_METRICS
from erasure_lightning.metrics.protocol import Protocol, Result, short_hash
from erasure_lightning.metrics.scorer import Scorer, check_source
from erasure_lightning.metrics.seed_statistics import MeanCosine, PixelDistance, RecognitionRate
from erasure_lightning.metrics.zero_shot import ZeroShotClassifier
from erasure_lightning.runs.folder import Run
from erasure_lightning.training.base import ErasureModule

_NO_SCORER = (
    "Measure needs a scorer to recognise things; found none, so only pixels are compared. Give it a"
    " CLIP or SigLIP: scorer=FOLDER, or a Hub id such as openai/clip-vit-base-patch32 (command"
    " line: --trainer.callbacks+=Measure --trainer.callbacks.scorer=FOLDER)."
)

_NOT_SHOWN = "The original shows the concept in none of these images: they do not measure erasure."


class Measure(PairedImages):
    """Measures an edit on the images of ``test`` or ``validate``.

    Writes ``metrics.json`` into the run's folder, logs the means as ``measure/...`` and prints a
    table. The metrics of the last run are its ``result``.

    Args:
        scorer: Folder or Hub id of a CLIP or SigLIP that classifies the images; the world's own by
            default. Without either, only pixels are compared.
        show: Whether the table is printed.
    """

    def __init__(self, scorer: str | None = None, *, show: bool = True) -> None:
        self.scorer = scorer
        self.show = show
        self.result: Result | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check, before training, that there is a scorer of that name."""
        if self.scorer is not None and stage == "fit":
            check_source(self.scorer)

    def begin(self, module: ErasureModule, requests: Sequence[ImageRequest]) -> None:
        """Load the scorer."""
        world = module.backbone.world
        source = self.scorer or (world.scorer if world else None)
        scorer = Scorer.load(source).to(module.device) if source else None
        vocabulary = Vocabulary(world, module.concepts)
        earlier = Vocabulary(world, module.earlier)
        self._metrics = EditMetrics(scorer, vocabulary, requests, module.device, earlier)

    def take(self, requests: Sequence[ImageRequest], original: Tensor, edited: Tensor) -> None:
        """Measure a batch of images."""
        self._metrics.update(requests, original, edited)

    def finish(self, trainer: Trainer, module: ErasureModule) -> None:
        """Reduce the metrics over ranks; log, write and print them."""
        edit = module.description()
        protocol = self._metrics.protocol(module, edit)
        self.result = result = Result(protocol, edit, self._metrics.estimates())
        del self._metrics  # frees the scorer
        module.log_dict(_means(result), sync_dist=True)
        if trainer.is_global_zero:
            result.save(Run(Path(trainer.default_root_dir)).metrics)
            if self.show:
                Console().print(result_table(result))


class EditMetrics:
    """All metrics of an edit, accumulated over batches of images.

    Args:
        scorer: Classifies the images; without it only pixels are compared.
        vocabulary: Labels that the model can generate, and the erased concepts.
        requests: The images of all ranks.
        device: Device of the images.
        earlier: The vocabulary with the concepts of edits beneath as the erased ones, if any.
    """

    def __init__(
        self,
        scorer: Scorer | None,
        vocabulary: Vocabulary,
        requests: Sequence[ImageRequest],
        device: torch.device,
        earlier: Vocabulary | None = None,
    ) -> None:
        self.scorer = scorer
        self.seeds = sorted({request.seed for request in requests})
        present = {request.group for request in requests}
        self.groups = [group for group in GROUP_QUESTIONS if group in present]
        answers = sorted({r.answer for r in requests if r.group not in ERASURE_GROUPS})
        self.classifier = ZeroShotClassifier(scorer, vocabulary, answers) if scorer else None
        self.earlier = ZeroShotClassifier(scorer, earlier, []) if scorer and earlier else None
        self.labels = self.classifier.labels if self.classifier else vocabulary.labels
        self.metrics = {key: metric.to(device) for key, metric in self._metrics().items()}
        self.measured: list[ImageRequest] = []
        self.size = 0

    def _metrics(self) -> dict[tuple[str, str, str], Metric]:
        """Metrics by group, name, and ``before`` or ``after`` the edit."""
        metrics: dict[tuple[str, str, str], Metric] = {}
        for group in self.groups if self.scorer else ():
            for when in ("before", "after"):
                metrics[group, "recognized", when] = RecognitionRate(self.seeds)
                metrics[group, "image_text", when] = MeanCosine(self.seeds)
        if "specificity" in self.groups:
            if self.scorer:
                metrics["structure", "similarity", "after"] = MeanCosine(self.seeds)
            metrics["structure", "distance", "after"] = PixelDistance(self.seeds)
        return metrics

    def update(self, requests: Sequence[ImageRequest], original: Tensor, edited: Tensor) -> None:
        """Add a batch of images.

        Args:
            requests: The ``B`` requests.
            original: The original model's images, ``(B, 3, H, W)`` in 0..1.
            edited: The edited model's images, alike.
        """
        self.measured += requests
        self.size = edited.shape[-1]
        rows = {
            group: [i for i, request in enumerate(requests) if request.group == group]
            for group in self.groups
        }
        specific = rows.get("specificity", [])
        seeds = [requests[i].seed for i in specific]
        if specific:
            distance = self.metrics["structure", "distance", "after"]
            distance.update(edited[specific], original[specific], seeds)
        if not self.scorer:
            return
        before = self.scorer.images(original)
        after = self.scorer.images(edited)
        for group, chosen in rows.items():
            group_requests = [requests[i] for i in chosen]
            self._recognize(group, "before", group_requests, before[chosen])
            self._recognize(group, "after", group_requests, after[chosen])
        if specific:
            similarity = self.metrics["structure", "similarity", "after"]
            similarity.update(after[specific], before[specific], seeds)

    def _recognize(
        self, group: str, when: str, requests: Sequence[ImageRequest], features: Tensor
    ) -> None:
        """Add images of one group by the scorer's features, ``(B, D)``."""
        if not requests:
            return
        classifier = self.earlier if group == "earlier" else self.classifier
        assert classifier is not None
        seeds = [request.seed for request in requests]
        candidates = [classifier.candidates(group, request.answer) for request in requests]
        texts = torch.stack([classifier.text(request.prompt) for request in requests])
        self.metrics[group, "recognized", when].update(features, candidates, seeds)
        self.metrics[group, "image_text", when].update(features, texts, seeds)

    def estimates(self) -> dict[str, dict[str, dict[str, Estimate]]]:
        """Estimates over all ranks, without metrics that saw no image; a collective."""
        estimates: dict[str, dict[str, dict[str, Estimate]]] = {}
        for (group, name, when), metric in self.metrics.items():
            estimate = metric.compute()
            if estimate.images:
                estimates.setdefault(group, {}).setdefault(name, {})[when] = estimate
        return estimates

    def protocol(self, module: ErasureModule, edit: Mapping[str, Any]) -> Protocol:
        """How the edit was measured; a collective."""
        requests = sorted(set(all_gather_items(self.measured)))
        return Protocol(
            prompts={
                group: sorted({request.prompt for request in requests if request.group == group})
                for group in self.groups
            },
            seeds=sorted({request.seed for request in requests}),
            steps=requests[0].steps,
            guidance=requests[0].guidance,
            size=self.size,
            sampler=module.backbone.sampler_name,
            scorer_fingerprint=self.scorer.fingerprint() if self.scorer else "",
            backbone_fingerprint=module.unedited_fingerprint,
            vocabulary=short_hash(self.labels),
            backbone=edit["backbone"],
            scorer=self.scorer.name if self.scorer else "",
            versions=edit["versions"],
            precision=str(module.trainer.precision),
            sampler_settings=module.backbone.sampler_settings,
        )


def _means(result: Result) -> dict[str, float]:
    """Means by logged name, such as ``measure/efficacy_image_text_after``.

    ``recognized`` and the stage of ``structure`` are left out of the name.
    """
    means = {}
    for group, metrics in result.estimates.items():
        for name, stages in metrics.items():
            for when, estimate in stages.items():
                parts = [group]
                if name != "recognized":
                    parts.append(name)
                if group != "structure":
                    parts.append(when)
                means["measure/" + "_".join(parts)] = estimate.mean
    for when in ("before", "after"):
        overall = result.overall(when)
        if overall is not None:
            means[f"measure/overall_{when}"] = overall
    return means


def result_table(result: Result) -> Table:
    """The metrics as a table: a row a group, with intervals and the better direction."""
    seeds = len(result.protocol.seeds)
    title = f"The edit, measured with {seeds} seeds (95 % intervals)"
    table = Table(title=title, caption=_caption(result))
    for column in ("", "question", "before", "after", "better"):
        table.add_column(column)
    for group, metrics in result.estimates.items():
        if group == "structure":
            continue
        before, after = (metrics["recognized"][when].two_lines() for when in ("before", "after"))
        better = "lower" if group in ERASURE_GROUPS else "higher"
        table.add_row(group, GROUP_QUESTIONS[group], before, after, better)
    for name, stages in result.estimates.get("structure", {}).items():
        question, better = STRUCTURE_METRICS[name]
        table.add_row("structure", question, "", stages["after"].two_lines(), better)
    return table


def _caption(result: Result) -> str:
    if not result.protocol.scorer:
        return _NO_SCORER
    before = result.overall("before")
    after = result.overall("after")
    if before is None or after is None:
        return ""
    overall = f"overall (harmonic mean): {before:.3f} before, {after:.3f} after"
    if result.estimates["efficacy"]["recognized"]["before"].mean > 0:
        return overall
    return f"{overall}\n{_NOT_SHOWN}"
