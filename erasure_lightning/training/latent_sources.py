"""Sources of noisy latents, the batches they draw, and the frozen teacher's predictions on them."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor

from erasure_lightning.backbones.base import Backbone
from erasure_lightning.backbones.conditioning import Conditioning
from erasure_lightning.concepts.concept import Phrase, PromptBatch
from erasure_lightning.files.arguments import require_choices
from erasure_lightning.training.time_sampling import DENSITIES, TimeSampling

#: What a teacher predicts for: the concepts' sentences, their anchors', those without words in the
#: concepts' place, or no prompt.
TeacherQuery = Literal["concept", "anchor", "wordless", "unconditional"]

#: Returns cached predictions: ``recall(query, predict)``, where ``predict`` computes those of some
#: rows.
Recall = Callable[[TeacherQuery, Callable[[Tensor], Tensor]], Tensor]


class Teacher:
    """Lazy, gradient-free predictions of the frozen original at a batch of latents.

    Each is computed when it is first read.

    Args:
        original: The frozen model.
        x: Noisy latents ``(B, C, h, w)``.
        t: Their times ``(B,)``.
        sentences: The sentences they belong to.
        recall: Returns predictions from a source's cache; by default all are computed.
    """

    def __init__(
        self,
        original: Backbone,
        x: Tensor,
        t: Tensor,
        sentences: PromptBatch,
        recall: Recall | None = None,
    ) -> None:
        self.original = original
        self.x = x
        self.t = t
        self.sentences = sentences
        self._recall = recall

    @torch.no_grad()
    def predict(self, prompts: Sequence[str | Phrase]) -> Tensor:
        """Predictions for any ``B`` prompts, ``(B, C, h, w)``."""
        return self.original.denoise(self.x, self.t, self.original.encode(prompts))

    @cached_property
    def concept(self) -> Tensor:
        """``eps*(x, t, c_e)``: for the concepts' sentences, ``(B, C, h, w)``."""
        return self._predictions("concept")

    @cached_property
    def anchor(self) -> Tensor:
        """``eps*(x, t, c_a)``: for the anchors' sentences; unconditional where there is none."""
        return self._predictions("anchor")

    @cached_property
    def wordless(self) -> Tensor:
        """``eps*(x, t, s)``: for the sentences without the concepts' words, ``(B, C, h, w)``."""
        return self._predictions("wordless")

    @cached_property
    def unconditional(self) -> Tensor:
        """``eps*(x, t, 0)``: without a prompt, ``(B, C, h, w)``."""
        return self._predictions("unconditional")

    def _predictions(self, query: TeacherQuery) -> Tensor:
        all_rows = torch.arange(len(self.x))
        if self._recall is None:
            return self._predict(query, all_rows)
        return self._recall(query, lambda rows: self._predict(query, rows)).to(self.x)

    @torch.no_grad()
    def _predict(self, query: TeacherQuery, rows: Tensor) -> Tensor:
        original = self.original
        sentences = self.sentences.rows(rows.tolist())
        if query == "unconditional":
            conditioning = original.unconditional(len(rows))
        elif query == "concept":
            conditioning = original.encode(sentences.prompts)
        elif query == "wordless":
            conditioning = original.encode(sentences.wordless_prompts)
        else:
            conditioning = anchor_conditioning(original, sentences)
        return original.denoise(self.x[rows], self.t[rows], conditioning)


def anchor_conditioning(backbone: Backbone, sentences: PromptBatch) -> Conditioning:
    """Conditioning on the anchors' sentences ``(B, L, D)``, unconditional where there is none."""
    conditioning = backbone.encode(sentences.anchor_or_empty_prompts)
    if all(sentences.anchors):
        return conditioning
    has_anchor = torch.tensor([bool(anchor) for anchor in sentences.anchors])
    return conditioning.where(has_anchor, backbone.unconditional())


@dataclass(frozen=True)
class NoisyBatch:
    """Noisy latents at which a loss is evaluated.

    Args:
        x: Latents, ``(B, C, h, w)``.
        t: Their times, real-valued, ``(B,)``.
        sentences: The ``B`` concept prompts they belong to.
        teacher: The frozen original's predictions at these latents.
        rows: Number of each latent's trajectory or image in its source, ``(B,)``; none for pure
            noise.
        target: The prediction of a perfect denoiser, ``(B, C, h, w)``, where the clean latents are
            known.
    """

    x: Tensor
    t: Tensor
    sentences: PromptBatch
    teacher: Teacher
    rows: Tensor | None = None
    target: Tensor | None = None

    def __len__(self) -> int:
        return len(self.x)

    @property
    def prompts(self) -> list[Phrase]:
        """The sentences with the concepts' words."""
        return self.sentences.prompts

    @property
    def anchor_prompts(self) -> list[Phrase]:
        """The sentences with the anchors' words."""
        return self.sentences.anchor_prompts

    @property
    def indices(self) -> Sequence[int]:
        """Number of each sentence's concept."""
        return self.sentences.indices

    def with_sentences(self, sentences: PromptBatch) -> Self:
        """The same latents for other sentences, whose predictions no source has cached."""
        teacher = Teacher(self.teacher.original, self.x, self.t, sentences)
        return replace(self, sentences=sentences, teacher=teacher)


@dataclass(frozen=True)
class SourceModels:
    """The models and sentences that a source generates latents from.

    Args:
        original: The frozen model.
        student: The model that is trained, or its average.
        sentences: Returns ``count`` sentences for a ``number``, which tells one set from the next.
        concept_count: Number of concepts; sentences cycle through them.
        seed: Seed of everything that is generated once; differs from rank to rank.
    """

    original: Backbone
    student: Backbone
    sentences: Callable[[int, int], PromptBatch]
    concept_count: int
    seed: int


class LatentSource(ABC):
    """Base class of everything that supplies noisy latents to train on."""

    #: Whether latents come with the sentences they were generated for, not with those of the step.
    has_sentences: ClassVar[bool] = False

    def prepare(self, models: SourceModels) -> None:  # noqa: B027  (optional)
        """Generates what is generated once, before the first step."""

    @abstractmethod
    def draw(self, sentences: PromptBatch, models: SourceModels) -> NoisyBatch:
        """Latents for a batch of sentences, or for others of the same concepts.

        Args:
            sentences: The step's concept prompts.
            models: The models that the latents come from.
        """

    def state_dict(self) -> dict[str, Any]:
        """State from which a resumed run draws the same latents."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027  (optional)
        """Restores the state of `state_dict`."""

    def nbytes(self) -> int:
        """Memory of the cached latents and predictions, in bytes."""
        return 0


def random_rows(sentences: PromptBatch, indices: Sequence[int]) -> list[int]:
    """The number of a random sentence of each concept in ``indices``."""
    candidates = [
        [row for row, other in enumerate(sentences.indices) if other == index] for index in indices
    ]
    return [rows[int(torch.randint(len(rows), ()))] for rows in candidates]


class PureNoise(LatentSource):
    """An empty image noised to random times: the cheap alternative to trajectories.

    MACE and Forget-Me-Not ship the same as ``no_real_image`` (verified in code).

    Args:
        times: How the times are sampled: ``uniform``, by ``importance`` (MACE), or ``logit-normal``
            (flow models).

    Raises:
        ErasureError: If they are to be sampled in another way.
    """

    def __init__(self, times: TimeSampling = "uniform") -> None:
        self.times = times
        require_choices(type(self), vars(self))

    def draw(self, sentences: PromptBatch, models: SourceModels) -> NoisyBatch:
        """Fresh noise for the step's own sentences."""
        x, t = pure_noise(models.original, len(sentences.concepts), self.times)
        return NoisyBatch(x, t, sentences, Teacher(models.original, x, t, sentences))


def pure_noise(
    backbone: Backbone, count: int, times: TimeSampling = "uniform"
) -> tuple[Tensor, Tensor]:
    """Latents of an empty image noised to random times, and the times.

    Args:
        backbone: Determines shape, precision and noise process.
        count: Number of latents.
        times: How the times are drawn.

    Returns:
        Latents ``(count, C, h, w)`` and times ``(count,)``.
    """
    t = backbone.process.draw_times(count, DENSITIES[times]).to(backbone.device)
    noise = torch.randn(count, *backbone.latent_shape()).to(backbone.device, backbone.dtype)
    return backbone.process.noise(torch.zeros_like(noise), noise, t), t
