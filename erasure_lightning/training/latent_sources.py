"""Where noisy latents come from: `LatentSource`, the batches it draws, and the frozen teacher's
predictions on them.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, Self

import torch
from torch import Tensor

from erasure_lightning.backbones.base import Backbone
from erasure_lightning.backbones.conditioning import Conditioning
from erasure_lightning.concepts.concept import Phrase, PromptBatch

#: What a teacher predicts for: the concepts' sentences, their anchors', or no prompt.
Query = Literal["concept", "anchor", "unconditional"]

#: Looks a teacher's predictions up; ``recall(query, predict)``, where ``predict`` makes those of
#: some rows.
Recall = Callable[[Query, Callable[[Tensor], Tensor]], Tensor]


class Teacher:
    """Gradient-free predictions of the frozen original at given latents, each made when it is first
    read.

    Args:
        original: The frozen model.
        x: Noisy latents ``(B, C, h, w)``.
        t: Their times ``(B,)``.
        sentences: The sentences that they belong to.
        recall: Looks predictions up where a source may hold them.
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
        """Predictions for prompts of your own, ``(B, C, h, w)``."""
        return self.original.denoise(self.x, self.t, self.original.encode(prompts))

    @cached_property
    def concept(self) -> Tensor:
        """``eps*(x, t, c_e)``: for the concepts' sentences, ``(B, C, h, w)``."""
        return self._predictions("concept")

    @cached_property
    def anchor(self) -> Tensor:
        """``eps*(x, t, c_a)``: for the anchors' sentences, without a prompt where there is no
        anchor.
        """
        return self._predictions("anchor")

    @cached_property
    def unconditional(self) -> Tensor:
        """``eps*(x, t, 0)``: without a prompt."""
        return self._predictions("unconditional")

    def _predictions(self, query: Query) -> Tensor:
        every = torch.arange(len(self.x))
        if self._recall is None:
            return self._predict(query, every)
        return self._recall(query, lambda rows: self._predict(query, rows)).to(self.x)

    @torch.no_grad()
    def _predict(self, query: Query, rows: Tensor) -> Tensor:
        chosen, original = self.sentences.rows(rows.tolist()), self.original
        if query == "unconditional":
            conditioning = original.unconditional(len(rows))
        elif query == "concept":
            conditioning = original.encode(chosen.prompts)
        else:
            conditioning = alternatives(original, chosen)
        return original.denoise(self.x[rows], self.t[rows], conditioning)


def alternatives(backbone: Backbone, sentences: PromptBatch) -> Conditioning:
    """What the denoiser reads of the anchors' sentences, ``(B, L, D)``; without a prompt where
    there is no anchor.
    """
    conditioning = backbone.encode(sentences.alternatives)
    if all(sentences.anchors):
        return conditioning
    return conditioning.where(
        torch.tensor([bool(a) for a in sentences.anchors]), backbone.unconditional()
    )


@dataclass(frozen=True)
class NoisyBatch:
    """Noisy latents at which a loss is taken.

    Args:
        x: Latents, ``(B, C, h, w)``.
        t: Their times, real-valued, ``(B,)``.
        sentences: The concept prompts that they belong to, ``B`` of them.
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
    def targets(self) -> list[Phrase]:
        """The sentences with the anchors' words."""
        return self.sentences.targets

    @property
    def indices(self) -> Sequence[int]:
        """Number of each sentence's concept."""
        return self.sentences.indices

    def with_sentences(self, sentences: PromptBatch) -> Self:
        """The same latents for other sentences, about which no source holds a prediction."""
        teacher = Teacher(self.teacher.original, self.x, self.t, sentences)
        return replace(self, sentences=sentences, teacher=teacher)


@dataclass(frozen=True)
class Models:
    """What a source draws from.

    Args:
        original: The frozen model.
        student: The model that is trained, or its average.
        sentences: Makes ``count`` sentences of a ``number``, which tells one set from the next.
        concepts: How many there are; sentences take turns with them.
        seed: Of everything that is drawn beforehand; differs from rank to rank.
    """

    original: Backbone
    student: Backbone
    sentences: Callable[[int, int], PromptBatch]
    concepts: int
    seed: int


class LatentSource(ABC):
    """Gives noisy latents to train at."""

    def prepare(self, models: Models) -> None:  # noqa: B027  (optional)
        """Draw what is drawn once, before the first step."""

    @abstractmethod
    def draw(self, sentences: PromptBatch, models: Models) -> NoisyBatch:
        """Latents for a batch of sentences, or for others of the same concepts.

        Args:
            sentences: The step's concept prompts.
            models: What is drawn from.
        """

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to draw the same latents."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027  (optional)
        """Go on where `state_dict` left off."""

    def nbytes(self) -> int:
        """Memory it holds, in bytes."""
        return 0


def random_rows(sentences: PromptBatch, indices: Sequence[int]) -> list[int]:
    """A random sentence of each concept, by number."""
    rows = [
        [row for row, other in enumerate(sentences.indices) if other == index] for index in indices
    ]
    return [own[int(torch.randint(len(own), ()))] for own in rows]


class PureNoise(LatentSource):
    """An empty picture noised to random times: the cheap stand-in for trajectories.

    MACE and Forget-Me-Not ship the same as ``no_real_image`` (verified in code).
    """

    def draw(self, sentences: PromptBatch, models: Models) -> NoisyBatch:
        """Fresh noise for the step's own sentences."""
        x, t = pure_noise(models.original, len(sentences.concepts))
        return NoisyBatch(x, t, sentences, Teacher(models.original, x, t, sentences))


def pure_noise(backbone: Backbone, count: int) -> tuple[Tensor, Tensor]:
    """Latents ``(B, C, h, w)`` of an empty picture noised to random times ``(B,)``."""
    t = backbone.process.draw_times(count).to(backbone.device)
    noise = torch.randn(count, *backbone.latent_shape()).to(backbone.device, backbone.dtype)
    return backbone.process.noise(torch.zeros_like(noise), noise, t), t
