"""`TrajectoryBank`: cached denoising trajectories with the frozen teacher's predictions on them."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from math import ceil
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from erasure_lightning.backbones.base import Backbone
from erasure_lightning.checks import require
from erasure_lightning.concepts.concept import PromptBatch
from erasure_lightning.diffusion.sampling import rollout
from erasure_lightning.errors import ErasureError
from erasure_lightning.training.latent_sources import (
    LatentSource,
    NoisyBatch,
    SourceModels,
    Teacher,
    TeacherQuery,
    random_rows,
)


class TrajectoryBank(LatentSource):
    """Caches denoising trajectories (latents, times, teacher predictions) and samples batches.

    Peers roll out up to 50 steps for one training latent. Here a rollout of ``steps`` steps yields
    ``steps`` latents, and the frozen original predicts once at each, however often it is drawn.

    Args:
        trajectories: Number of rollouts, at least 1, and at least one a concept; they cycle through
            the concepts.
        steps: Sampling steps of each, at least 1 (50 in the official code of ESD and others).
        guidance: Scale of classifier-free guidance of the rollouts.
        student: Roll out the model that is trained, not the original; then ``refresh`` sets how
            often.
        refresh: Roll out again after this many draws; 0 for never, which suits rollouts of the
            frozen original. With more concepts than trajectories it is as much rarer as there are
            more rollouts, so that a draw costs no more of them.
        half: Store latents and predictions in float16.
        batch_size: Trajectories rolled out side by side.

    Raises:
        ErasureError: If a count is below 1, guidance is negative, NaN or infinite, or the student
            is rolled out without a refresh.
    """

    has_sentences = True

    #: What the conditional predictions of the rollouts are conditioned on.
    _query: ClassVar[TeacherQuery] = "concept"

    #: Cached tensors of a step ``(B, ...)``, and its times ``()``: key -> name in the step.
    _fields: ClassVar[Mapping[str, str]] = {"x": "x"}
    _times: ClassVar[Mapping[str, str]] = {"t": "t"}

    def __init__(
        self,
        trajectories: int = 32,
        steps: int = 50,
        guidance: float = 3.0,
        *,
        student: bool = False,
        refresh: int = 0,
        half: bool = False,
        batch_size: int = 16,
    ) -> None:
        counts = {"trajectories": trajectories, "steps": steps, "batch_size": batch_size}
        require("TrajectoryBank", at_least=1, **counts)
        require("TrajectoryBank", at_least=0, guidance=guidance)
        if student and refresh < 1:
            raise ErasureError(
                "TrajectoryBank needs refresh of at least 1 to follow the student; found"
                f" {refresh}."
            )
        self.trajectories = trajectories
        self.steps = steps
        self.guidance = guidance
        self.student = student
        self.refresh = refresh
        self.half = half
        self.batch_size = batch_size
        #: Whether the trajectories are those of a checkpoint, with which the next fit continues.
        self._restored = False
        self._clear()

    def _clear(self) -> None:
        #: The sentences that the trajectories were rolled out for.
        self.sentences = PromptBatch([], [], [])
        #: Latents ``x``, times ``t`` and predictions by trajectory and step, and, as ``known KEY``,
        #: which entries of ``KEY`` have been computed.
        self._held: dict[str, Tensor] = {}
        self._rollouts = 0
        self._draws = 0

    def prepare(self, models: SourceModels) -> None:
        """Drops the trajectories of an earlier fit, which may be of another method or model."""
        if not self._restored:
            self._clear()
        self._restored = False

    def rollouts(self, draws: int, concepts: int) -> int:
        """How often the trajectories of ``concepts`` concepts are rolled out for some draws."""
        if not self.refresh:
            return min(draws, 1)
        period = self.refresh * max(self.trajectories, concepts) / self.trajectories
        return ceil(draws / period)

    def update(self, models: SourceModels) -> None:
        """Rolls trajectories out if there are none or a refresh is due.

        Where ranks share weights, all of them roll out once any is due.
        """
        backbone = models.student if self.student else models.original
        due = self.rollouts(self._draws + 1, models.concept_count) > self._rollouts
        if not backbone.any_rank(due):
            for key, value in self._held.items():
                self._held[key] = value.to(_device(key, backbone))
            return
        self.sentences = models.sentences(
            max(self.trajectories, models.concept_count), self._rollouts
        )
        count = len(self.sentences.concepts)
        generator = torch.Generator().manual_seed(models.seed + self._rollouts)
        seeds = torch.randint(2**31, (count,), generator=generator).tolist()
        parts = [
            self._roll_out(backbone, slice(start, start + self.batch_size), seeds)
            for start in range(0, count, self.batch_size)
        ]
        self._held = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
        self._rollouts += 1

    @torch.no_grad()
    def _roll_out(self, backbone: Backbone, rows: slice, seeds: Sequence[int]) -> dict[str, Tensor]:
        numbers = range(len(self.sentences.concepts))[rows]
        steps = list(self._steps(backbone, self.sentences.rows(numbers), seeds[rows]))
        fields = dict(self._fields)
        # Predictions of the student, or at an embedded guidance, are not the teacher's.
        if not (self.student or backbone.embeds_guidance):
            fields[self._query] = "conditional"
            if self.guidance > 1:
                fields["unconditional"] = "unconditional"
        values = {
            key: torch.stack([getattr(step, field) for step in steps], 1)
            for key, field in fields.items()
        }
        if self.half:
            values = {key: value.half() for key, value in values.items()}
        known = {
            f"known {key}": torch.ones(value.shape[:2], dtype=torch.bool)
            for key, value in values.items()
        }
        times = {
            key: torch.stack([getattr(step, field) for step in steps]).float()
            for key, field in self._times.items()
        }
        count = len(values["x"])
        return values | known | {key: t.expand(count, -1).clone() for key, t in times.items()}

    def _steps(
        self, backbone: Backbone, sentences: PromptBatch, seeds: Sequence[int]
    ) -> Iterable[NamedTuple]:
        """The steps of a rollout of each sentence."""
        conditioning = backbone.encode(sentences.prompts)
        return rollout(backbone, conditioning, seeds, steps=self.steps, guidance=self.guidance)

    def draw(self, sentences: PromptBatch, models: SourceModels) -> NoisyBatch:
        """A random step of a random trajectory of each sentence's concept.

        The batch has the trajectories' own sentences.
        """
        self.update(models)
        rows = torch.tensor(random_rows(self.sentences, sentences.indices))
        self._draws += 1
        return self.at(rows, torch.randint(self.length, (len(rows),)), models.original)

    @property
    def length(self) -> int:
        """Denoiser evaluations a trajectory: its steps, or more of a higher-order sampler."""
        return self._held["t"].shape[1]

    def at(self, rows: Tensor, columns: Tensor, original: Backbone) -> NoisyBatch:
        """Some steps of some trajectories.

        Args:
            rows: Numbers of the trajectories, ``(B,)``.
            columns: Number of a step of each, ``(B,)``.
            original: The model that computes predictions that are not cached yet.
        """
        sentences = self.sentences.rows(rows.tolist())
        x = self._at("x", rows, columns).to(original.dtype)
        t = self._held["t"][rows, columns]

        held = self._held  # a search may refresh the bank before the batch's predictions are read

        def recall(query: TeacherQuery, predict: Callable[[Tensor], Tensor]) -> Tensor:
            return _recall(held, query, rows, columns, predict, original.any_rank)

        teacher = Teacher(original, x, t, sentences, None if self.student else recall)
        return NoisyBatch(x, t, sentences, teacher, rows)

    def _at(self, key: str, rows: Tensor, columns: Tensor) -> Tensor:
        return self._held[key][rows, columns].float()

    def nbytes(self) -> int:
        """Memory of the cached latents and predictions, in bytes."""
        return sum(value.nbytes for value in self._held.values())

    def state_dict(self) -> dict[str, Any]:
        """State from which a resumed run draws the same steps."""
        counts = {"rollouts": self._rollouts, "draws": self._draws}
        return {"held": self._held, "sentences": self.sentences._asdict(), **counts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the state of `state_dict`."""
        self._held = state["held"]
        self.sentences = PromptBatch(**state["sentences"])
        self._rollouts = state["rollouts"]
        self._draws = state["draws"]
        self._restored = True


def _device(key: str, backbone: Backbone) -> torch.device:
    """Device of a cached tensor: the model's; of a ``known`` mask the CPU."""
    return torch.device("cpu") if key.startswith("known") else backbone.device


def _recall(
    held: dict[str, Tensor],
    query: TeacherQuery,
    rows: Tensor,
    columns: Tensor,
    predict: Callable[[Tensor], Tensor],
    any_rank: Callable[[bool], bool],
) -> Tensor:
    """The original's predictions at steps of trajectories, ``(B, C, h, w)``, computed once.

    Args:
        held: The cached tensors, ``(N, T, ...)`` by trajectory and step.
        query: What the predictions are conditioned on.
        rows: Trajectories, ``(B,)``.
        columns: Their steps, ``(B,)``.
        predict: Computes the predictions of some of the ``B``, by number.
        any_rank: Whether any rank lacks predictions, for ranks that can only predict together
            (`Backbone.any_rank`).
    """
    if query not in held:
        held[query] = torch.zeros_like(held["x"])
        held[f"known {query}"] = torch.zeros_like(held["known x"])
    predictions = held[query]
    known = held[f"known {query}"]
    all_rows = torch.arange(len(rows))
    missing = all_rows[~known[rows, columns]]
    if any_rank(len(missing) > 0):
        if not len(missing):
            missing = all_rows[:1]  # a dummy forward, so that every rank enters the collective
        predicted = predict(missing).to(predictions.dtype)
        predictions[rows[missing], columns[missing]] = predicted
        known[rows[missing], columns[missing]] = True
    return predictions[rows, columns].float()
