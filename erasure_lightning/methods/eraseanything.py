"""EraseAnything: guides away, takes attention from the concept's words, and retains others.

Gao et al., EraseAnything: Enabling Concept Erasure in Rectified Flow Transformers, ICML 2025, arXiv
2412.20413. Official code tomguluson92/EraseAnything @ 67d8c0b. Adapters of the text's queries and
keys alone (``add_q_proj``, ``add_k_proj`` of FLUX's double blocks) take two kinds of step in turn;
``v`` is the model's prediction, ``v*`` the frozen original's, all at ``(x_t, t)``:

    erase   ``mse( v(c), v*(a) - eta (v*(c) - v*(a)) ) + l_a sum_q sum_{k in c} |A[:, q, k]|``
    retain  ``l_r mse( v(r_1), v*(r_1) )``
            ``+ l_c log( e^{F.G / tau} / (e^{F.G / tau} + sum_i e^{F.F_i / tau}) )``

``A[heads, q, k]`` is the attention of pixel ``q`` to token ``k`` in the last such block, its norm
over heads. ``F`` is the map of the concept's words, ``G`` of a synonym's and ``F_i`` of ``K``
unrelated words ``r_i``, of length 1: the second term of a retaining step ("reverse" InfoNCE) turns
the concept's map away from its synonym's.

Verified in code (the paper was not available): both kinds of step and their alternation, the
erasing loss with a neutral sentence in the place of the empty prompt (here the anchor), the norm,
the contrast's sign, ``K = 3`` (words that a language model named), ``tau = 0.07``, the key word
where WordNet has no synonym; and the numbers: eta 1, weights 1, 1e-3, 0.1, 0.1, rank 8 = alpha
(``gaussian``), AdamW 1e-3 (constant, decay 1e-5), 200 steps of both kinds together, batch 1, 28
sampling steps at guidance 3, 512 pixels.

The code cannot be run as it is (the copy of diffusers that it ships lacks folders). Where it has
bugs, ours does what its comments say:

* the teacher is the student with its adapters on: a target that moves with the student has no
  fixed point but the anchor's prediction. Ours is the frozen original.
* erasing latents are denoised to the end, then evaluated at any time. Ours have the noise of
  theirs.
* a retaining step's first term fits the *concept's* images to the concept's sentence, which trains
  the concept again, though the step is to preserve "D_ir(irrelevant)". Ours retains an unrelated
  word, by the original's prediction, which needs no images.
* the contrast is of the synonym's map with all others. Only the concept's map has a gradient, so
  that the unrelated words do not attract it. Ours is of the concept's map with all others.
* maps are those of head 0, at the concept's positions also in sentences whose words stand
  elsewhere, and of unlike latents and times; the norm is that of noised images of the concept. Ours
  are the mean over heads and over each sentence's own words, and all at the latents of the step.
* positions are found before the sentence's words are replaced by synonyms. Ours mark the words of
  the sentence that is read; words are not shuffled.

Where ours also differs: ``q`` are the pixels (in the official code text tokens too), the latents
are the bank's, and predictions are compared at guidance 1 as everywhere here (3 and 3.5 in the
official code). Any family whose attention can be read is supported; the official code has
FLUX.1-dev alone. Where the text has keys but no queries (cross-attention, ``attn2.to_k``), these
alone have adapters.

Cost of a row: an erasing step is a forward and a backward, a retaining step two of each and ``K +
1`` forwards of the original.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import mse_loss, normalize

from erasure_lightning.adapters.base import AdapterPlan
from erasure_lightning.adapters.lora import LoraInit
from erasure_lightning.backbones.base import Backbone
from erasure_lightning.backbones.conditioning import CONCEPT, Conditioning
from erasure_lightning.checks import require
from erasure_lightning.concepts.vocabulary import Vocabulary
from erasure_lightning.errors import ErasureError
from erasure_lightning.training.adapter_methods import PartErasure
from erasure_lightning.training.attention_masks import word_map
from erasure_lightning.training.latent_sources import LatentSource, NoisyBatch
from erasure_lightning.training.optimizers import OptimizerName
from erasure_lightning.training.trajectory_bank import TrajectoryBank


class EraseAnything(PartErasure):
    """Guides away from the concept with less attention to its words, between retaining steps.

    Args:
        eta: Negative guidance, at least 0; at 0 the target is the anchor's prediction.
        attention_weight: ``l_a`` of the attention to the concept's words, at least 0.
        retain_weight: ``l_r`` of the predictions for unrelated words, at least 0; where it and
            ``contrast_weight`` are 0, every step erases.
        contrast_weight: ``l_c`` of the contrast of attention maps, at least 0.
        temperature: ``tau`` of the contrast, above 0.
        unrelated: Words to retain; by default the world's other labels (styles for a style), or
            everyday things. At least ``negatives``.
        negatives: ``K``, unrelated words a step, at least 1.
        synonyms: Words of equal meaning, by the concept's name; by default its own.
        rank: Rank of each adapter, at least 1.
        lora_init: As in `PartErasure`.
        lr: Highest learning rate.
        optimizer: As in every gradient method.
        weight_decay: As in every gradient method.
        kwargs: Arguments of `GradientErasure`, and of `PartErasure`: with ``lora_layers``,
            layers of the part ``train`` have adapters, and not the text's queries and keys.

    Raises:
        ErasureError: If a number is out of range, or synonyms name no concept.
    """

    needs = frozenset({"attention maps"})

    default_steps = 200

    def __init__(
        self,
        *,
        eta: float = 1.0,
        attention_weight: float = 1e-3,
        retain_weight: float = 0.1,
        contrast_weight: float = 0.1,
        temperature: float = 0.07,
        unrelated: list[str] | None = None,
        negatives: int = 3,
        synonyms: dict[str, list[str]] | None = None,
        rank: int = 8,
        lora_init: LoraInit = "gaussian",
        lr: float = 1e-3,
        optimizer: OptimizerName = "adamw",
        weight_decay: float | None = 1e-5,
        **kwargs: Any,
    ) -> None:
        training: dict[str, Any] = {"lr": lr, "optimizer": optimizer, "weight_decay": weight_decay}
        super().__init__(rank=rank, lora_init=lora_init, **training, **kwargs)
        weights = {"retain_weight": retain_weight, "contrast_weight": contrast_weight}
        require("EraseAnything", at_least=0, eta=eta, attention_weight=attention_weight, **weights)
        require("EraseAnything", at_least=1, negatives=negatives)
        require("EraseAnything", above=0, temperature=temperature)
        self.eta = eta
        self.attention_weight = attention_weight
        self.retain_weight = retain_weight
        self.contrast_weight = contrast_weight
        self.temperature = temperature
        self.unrelated = unrelated
        self.negatives = negatives
        self.synonyms = synonyms or {}
        # The last layer's map does not depend on its own queries of the text; predictions do.
        self.has_unused = retain_weight == 0
        self.alternates = retain_weight > 0 or contrast_weight > 0
        self._check_words()

    def _check_words(self) -> None:
        """Raise if there are too few unrelated words, or synonyms of no concept."""
        if self.unrelated is not None and len(self.unrelated) < self.negatives:
            raise ErasureError(
                f"EraseAnything needs at least {self.negatives} unrelated words (negatives); found"
                f" {len(self.unrelated)}."
            )
        if unknown := sorted({*self.synonyms} - {concept.name for concept in self.concepts}):
            raise ErasureError(
                f"EraseAnything needs synonyms of its concepts; found some of {unknown[0]!r}."
            )

    def plan(self) -> AdapterPlan:
        """An adapter for each layer that computes queries or keys of the text."""
        if self.lora_layers is not None:
            return super().plan()
        named = self.backbone.text_queries_and_keys()
        layers = [name.removeprefix("denoiser.") for name in named]
        return AdapterPlan("lora", layers, {"rank": self.rank})

    def default_latents(self) -> LatentSource:
        """Trajectories that show the concepts, whose pixels attend to their words."""
        return TrajectoryBank(steps=28)

    @property
    def adversary_step(self) -> int:
        """Number of the erasing step: an adversary's share is of these."""
        return self.global_step // 2 if self.alternates else self.global_step

    def erasure_loss(self, batch: NoisyBatch) -> Tensor:
        """The erasing loss in even steps, the retaining one in odd steps, a scalar."""
        if self.alternates and self.global_step % 2:
            return self.retaining_loss(batch)
        return self.erasing_loss(batch)

    def erasing_loss(self, batch: NoisyBatch) -> Tensor:
        """``mse(v(c), v*(a) - eta (v*(c) - v*(a))) + l_a sum_q sum_k |A[:, q, k]|``."""
        prompts = self.concept_conditioning(batch)
        with self.backbone.attention() as maps:
            prediction = self.student(batch, prompts)
        anchor = batch.teacher.anchor
        target = anchor - self.eta * (batch.teacher.concept - anchor)
        erasure = self.prediction_error(prediction, target, batch.t)
        attention = attention_norm(_last(maps), prompts.positions(CONCEPT)).mean()
        return erasure + self.attention_weight * attention

    def retaining_loss(self, batch: NoisyBatch) -> Tensor:
        """``l_r mse(v(r_1), v*(r_1))`` and ``l_c`` times the contrast of maps."""
        words = [self._unrelated_words(index) for index in batch.indices]
        synonyms = [self._synonym(index) for index in batch.indices]
        others = [synonyms, *map(list, zip(*words, strict=True))]
        with torch.no_grad():
            predictions, maps = zip(
                *(self._attend(self.original, batch, each) for each in others), strict=True
            )
        concept = self._attend(self.backbone, batch, batch.sentences.concepts)[1]
        contrast = reverse_contrast(concept, torch.stack(maps, dim=1), self.temperature)
        loss = self.contrast_weight * contrast
        if self.retain_weight:
            retained = self._conditioning(self.backbone, batch, others[1])
            error = mse_loss(self.student(batch, retained), predictions[1])
            loss = loss + self.retain_weight * error
        return loss

    def _conditioning(
        self, backbone: Backbone, batch: NoisyBatch, words: Sequence[str]
    ) -> Conditioning:
        """The batch's sentences with other words in the concepts' place."""
        return backbone.encode(batch.sentences._replace(concepts=list(words)).prompts)

    def _attend(
        self, backbone: Backbone, batch: NoisyBatch, words: Sequence[str]
    ) -> tuple[Tensor, Tensor]:
        """A model's predictions for other words, and its map of them ``(B, pixels)``."""
        conditioning = self._conditioning(backbone, batch, words)
        with backbone.attention() as maps:
            prediction = backbone.denoise(batch.x, batch.t, conditioning)
        return prediction, word_map(_last(maps), conditioning.positions(CONCEPT))

    def _unrelated_words(self, index: int) -> list[str]:
        """``K`` random words to retain, for a concept's sentence.

        Raises:
            ErasureError: If there are none.
        """
        words = self.unrelated
        if words is None:
            vocabulary = Vocabulary(self.backbone.world, self.concepts)
            is_style = self.concepts[index].kind == "style"
            words = (vocabulary.other_styles if is_style else []) or vocabulary.others
        if not words:
            raise ErasureError(
                "EraseAnything needs words beside the concepts and their domains; found none. Set"
                " unrelated to some."
            )
        order = torch.randperm(len(words)).repeat(self.negatives)  # of few words some twice
        return [words[i] for i in order[: self.negatives].tolist()]

    def _synonym(self, index: int) -> str:
        """A random synonym of a concept; its name where there is none."""
        name = self.concepts[index].name
        words = self.synonyms.get(name) or [name]
        return words[int(torch.randint(len(words), ()))]


def _last(maps: Mapping[str, Tensor]) -> Tensor:
    """Those of the last layer, ``(B, heads, pixels, L)``."""
    return list(maps.values())[-1]


def attention_norm(maps: Tensor, positions: Tensor) -> Tensor:
    """``sum_q sum_{k marked} |A[:, q, k]|`` with the norm over heads, ``(B,)``.

    Args:
        maps: Attention probabilities, ``(B, heads, pixels, L)``.
        positions: Marked tokens, boolean ``(B, L)``.
    """
    norms: Tensor = torch.linalg.vector_norm(maps, dim=1)
    return (norms * positions[:, None]).sum(dim=(1, 2))


def reverse_contrast(concept: Tensor, others: Tensor, temperature: float) -> Tensor:
    """The log-probability of the synonym among the maps most like the concept's, a scalar.

    Args:
        concept: The concept's maps, ``(B, pixels)``.
        others: Maps of the synonym and of ``K`` unrelated words, ``(B, 1 + K, pixels)``.
        temperature: ``tau``.
    """
    cosines = torch.einsum("bp,bkp->bk", normalize(concept, dim=-1), normalize(others, dim=-1))
    likelihoods: Tensor = (cosines / temperature).log_softmax(dim=1)
    return likelihoods[:, 0].mean()
