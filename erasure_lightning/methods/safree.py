"""SAFREE: training-free and adaptive guard (Yoon et al., ICLR 2025, arXiv 2410.12761).

A rule at inference on what the text encoder returns. The concept's phrases span a subspace ``C`` of
the text encoder's states at the end of text. Of a prompt, each word is masked in turn: ``p_i``. A
word without which the prompt is farther from ``C`` is a *trigger*,

    ``|(I - P_C) p_i| >= (1 + alpha) mean_{j != i} |(I - P_C) p_j|``,

and its state ``s`` becomes ``(I - P_C) P_I s``, with ``P_I`` the projection onto the span of the
``p_i``. A self-validating filter decides how much: ``beta = 1 - mean cos(s, (I - P_C) P_I s)`` over
the prompt's tokens, through a sigmoid.

Official code: jaehong31/SAFREE @ b8b2c3f, ``models/modified_stable_diffusion_pipeline.py`` and
``generate_safree.py``. Verified there: the projections, ``alpha`` of 0.01, that masking puts token
0 (``!``) in a word's place, that only the words between start and end of text change and the states
behind them stay, though they have read the triggers, and a filter of ``sigmoid(2 k (10 beta -
m))``, with ``k, m`` of 2.5, 5.333, or 3.5, 5.5 for artists: a ``steepness`` of ``20 k`` at a
``threshold`` of ``m / 10``.

Where ours differs, or the official code has bugs:

* its filter is a number of steps, 1 to 11 of 50, in which the projected states are read. A text
  encoder knows no steps, and an edit must act in any sampler: here it is the share of the
  projection, in all steps;
* its latent re-attention in the Fourier domain is left out. In the official code it has no effect:
  ``generate_safree`` registers it without naming one of its three branches, so that none runs
  (``free_lunch_utils.py``, ``safree=None``);
* it leaves the states behind a trigger, which have read it, as they were: those of padding, where
  CLIP has all the meaning of a prompt, and other tokens of a word; ``tail`` is ours, and off;
* the mean of no others is NaN there, so that the only word of a prompt is always a trigger, and the
  filter alone decides. Ours compares such a prompt with and without its word;
* its phrases are a negative prompt too, which the paper's equations do not have. `SLD` is that idea
  as a rule of its own;
* it projects by the inverse of a Gram matrix in float32, whose condition is that of the summaries,
  near one another, squared; ours are float64 and of the summaries themselves.

Under attack: the rule acts on everything that the text encoder reads, words or embeddings
(UnlearnDiffAtk, P4D, RingABell, ConceptInversion's words), and gradients pass through it. It does
not act on states put before the denoiser (SoftEmbedding) and on latents (LatentInversion).
Pipelines that skip CLIP's last layers (``clip_skip``) read states that it does not change, of which
it warns; so do those with a second text encoder, in which it is refused.

Cost: no denoiser evaluation; one text encoding a phrase. At inference one text encoding more for
every word of a prompt.
"""

from typing import Any

from torch import Tensor

from erasure_lightning.adapters.base import AdapterPlan
from erasure_lightning.adapters.subspace_projection import orthonormal_basis
from erasure_lightning.checks import require
from erasure_lightning.training.inference_rule import InferenceRule


class SAFREE(InferenceRule):
    """Projects the words that bring a prompt near the concept out of the concept's subspace.

    Args:
        phrases: Phrases that span the subspace beside the concepts' names, such as those that
            circumscribe nudity; none by default.
        alpha: How much farther from the concept a prompt without a trigger is than without others,
            as a share, at least -1, at which every word is a trigger.
        tail: Whether all states behind a trigger, which have read it, are projected with it (ours).
        filter: Whether the self-validating filter scales the projection; else it is whole.
        steepness: Steepness of the filter, at least 0.
        threshold: ``beta`` at which the filter is a half, 0..2.
        kwargs: Arguments of `ErasureModule`.

    Raises:
        ErasureError: If a number is out of range.
    """

    needs = frozenset({"last text states"})

    def __init__(
        self,
        *,
        phrases: list[str] | None = None,
        alpha: float = 0.01,
        tail: bool = False,
        filter: bool = True,
        steepness: float = 50.0,
        threshold: float = 0.5333,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        require("SAFREE", at_least=-1, alpha=alpha)
        require("SAFREE", at_least=0, steepness=steepness)
        require("SAFREE", at_least=0, at_most=2, threshold=threshold)
        self.phrases = phrases or []
        self.alpha = alpha
        self.tail = tail
        self.filter = filter
        self.steepness = steepness
        self.threshold = threshold

    def plans(self) -> dict[str, AdapterPlan]:
        """The rule of the text encoder as a whole."""
        settings: dict[str, Any] = {"dimensions": len(self._spanning()), "alpha": self.alpha}
        settings["tail"] = self.tail
        if self.filter:
            settings |= {"steepness": self.steepness, "threshold": self.threshold}
        plan = AdapterPlan("subspace-projection", [""], settings)
        parts = [part for part in self.backbone.components if self.backbone.edits_text([part])]
        return dict.fromkeys(parts, plan)

    def solve(self) -> dict[str, Tensor]:
        """An orthonormal basis of the subspace."""
        summaries = self.original.encode(self._spanning()).summary
        return dict.fromkeys(self.editable(), orthonormal_basis(summaries))

    def _spanning(self) -> list[str]:
        """The phrases that span the subspace."""
        return [*(concept.name for concept in self.concepts), *self.phrases]
