"""RECE: reliable and efficient concept erasure (Gong et al., ECCV 2024, arXiv 2407.12383).

After a first edit, each epoch solves for the embedding ``c'`` for which the edited maps ``W`` give
what the original maps ``W*`` gave for the concept ``c``, and redirects it to the anchor ``a`` too:

    ``c' = argmin sum_l |W_l c' - W*_l c|^2 + reg |c'|^2``, then ``W c' -> W a``.

Official code: CharlesGong12/RECE @ 403a67f, ``train_object.py``,
``utils/embedding_calculation/close_form_emb.py`` (``close_regzero``) and ``erase_methods/uce.py``.
Verified there: ``c'`` for all positions of the bare name over all K and V maps together; pairs by
position; targets, ridge and preservation of each epoch from the *current* weights; ``e, p, lamb``
of 1, 0.1, 0.1; every epoch starts from ``c`` again. The first edit is UCE as of its paper's time
(f7222e6): from the last token of the words to the end of the padding, ``e, lamb`` of 1, 0.5, and
``p`` one over the number of preserved prompts, at least 0.1. The empty prompt is preserved; for
styles the names of 1,734 artists too. Its ``reg`` x epochs: 0.1 x 3 (nudity), 0.1 x 2 (unsafe),
1e-3 x 1 (styles, hard things), 0.1 x 1 (easy things). Its anchor is empty (``' '``) unless concepts
are guided. As published it retains little of the emoji world; the retention callback in our config
is not the paper's.

Where ours differs: every map is ``W* M`` with one ``M``, so that ``c'`` depends on
``S = sum_l W*_l^T W*_l`` alone and an epoch costs the same for any number of maps; float64; what
retention callbacks retain joins the preserved prompts. Left out: early stopping on validation
images, which returns the best epoch by a detector's rate.

Cost: no UNet evaluation; two text encodings a concept, and two factorisations an epoch.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from erasure_lightning.backbones.interface import TextInput
from erasure_lightning.checks import require
from erasure_lightning.concepts.concept import PromptBatch
from erasure_lightning.concepts.prompt_lists import read_prompt_list, without_concepts
from erasure_lightning.training.closed_form import ClosedFormErasure
from erasure_lightning.training.prompt_states import last_token_states
from erasure_lightning.training.regression import Regression, corrected_weight

#: Least weight ``p`` of a preserved prompt in the first edit.
_FIRST_PRESERVE = 0.1

#: Ridge ``lamb`` of the first edit.
_FIRST_RIDGE = 0.5

#: Prompts encoded at once.
_CHUNK = 64


class RECE(ClosedFormErasure):
    """Repeats UCE on the embeddings that would bring the concept back.

    Args:
        epochs: Number of rounds of adversarial embeddings; 0 for the first edit alone.
        regularization: ``reg``, penalty of an adversarial embedding's length, above 0.
        preserve: Prompts of which every position is retained; or a text file of such, one a line,
            or the name of a shipped list (``artists``), without those that name a concept and with
            the empty prompt. By default the empty prompt alone.
        preserve_scale: Weight ``p`` of each of their positions in an epoch, at least 0.
        ridge: Pull ``lamb`` of an epoch towards the weights before it, above 0.
        kwargs: Arguments of `ErasureModule`.

    Raises:
        ErasureError: If a number is out of range, or the file is missing or empty.
    """

    def __init__(
        self,
        *,
        epochs: int = 1,
        regularization: float = 1e-3,
        preserve: list[str] | str | None = None,
        preserve_scale: float = 0.1,
        ridge: float = 0.1,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        require("RECE", at_least=0, epochs=epochs, preserve_scale=preserve_scale)
        require("RECE", above=0, regularization=regularization, ridge=ridge)
        self.epochs = epochs
        self.regularization = regularization
        if isinstance(preserve, str):
            preserve = ["", *without_concepts(read_prompt_list(preserve, "RECE"), self.concepts)]
        self.preserve = [""] if preserve is None else preserve
        self.preserve_scale = preserve_scale
        self.ridge = ridge

    def solve(self) -> dict[str, Tensor]:
        """``W = W* M`` for every map, with one ``M`` for all that share an input."""
        solution: dict[str, Tensor] = {}
        for source in self.original.text_inputs():
            gram = sum_of_grams(source.weights())
            edit = self.first_edit(source)
            for _ in range(self.epochs):
                edit = self.epoch(edit, gram, source)
            identity = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
            weights = [corrected_weight(weight, edit - identity) for weight in source.weights()]
            solution |= source.named(weights)
        return solution

    def first_edit(self, source: TextInput) -> Tensor:
        """``M`` ``(D, D)`` of UCE, from the last token of the concepts' words to the end."""
        weight = max(1 / max(len(self.preserve), 1), _FIRST_PRESERVE)
        equations = self._preserving(weight, source)
        for batch in self._batches():
            concepts, anchors = last_token_states(self.original, batch, source, tail=True)
            equations.redirect(concepts, anchors)
        correction = equations.correction(_FIRST_RIDGE)
        identity = torch.eye(len(correction), dtype=correction.dtype, device=correction.device)
        return identity + correction

    def epoch(self, edit: Tensor, gram: Tensor, source: TextInput) -> Tensor:
        """``M`` after one more edit, of the embeddings that evade the edit so far.

        Args:
            edit: ``M`` so far, ``(D, D)``.
            gram: ``S`` ``(D, D)``.
            source: The maps.
        """
        equations = self._preserving(self.preserve_scale, source)
        for batch in self._batches():
            concept = self.original.encode(batch.prompts)
            anchor = self.original.encode(batch.anchor_prompts)
            both = source.read(concept) & source.read(anchor)
            states = adversarial_states(source.rows(concept)[both], edit, gram, self.regularization)
            equations.redirect(states, source.rows(anchor)[both])
        return edit + edit @ equations.correction(self.ridge)

    def _batches(self) -> Iterator[PromptBatch]:
        """The concepts' bare names."""
        names = [concept.name for concept in self.concepts]
        return PromptBatch.of_words("{}", names, [concept.anchor for concept in self.concepts])

    def _preserving(self, weight: float, source: TextInput) -> Regression:
        """Equations that retain the preserved prompts and what retention callbacks retain."""
        equations = Regression(self.retention_gram(source))
        for i in range(0, len(self.preserve), _CHUNK):
            preserved = source.rows(self.original.encode(self.preserve[i : i + _CHUNK]))
            equations.keep(preserved.flatten(0, 1), weight)
        return equations


def sum_of_grams(weights: list[Tensor]) -> Tensor:
    """``S = sum_l W_l^T W_l`` of maps ``(out, D)``, in float64 ``(D, D)``."""
    stacked = torch.cat([weight.double() for weight in weights])
    return stacked.mT @ stacked


def adversarial_states(
    concepts: Tensor, edit: Tensor, gram: Tensor, regularization: float
) -> Tensor:
    """Inputs for which the edited maps give what the original maps gave for ``concepts``.

    ``c' = (reg I + M^T S M)^-1 M^T S c``: the official normal equations with ``W_l = W*_l M``.

    Args:
        concepts: Rows ``c`` ``(N, D)``.
        edit: ``M`` ``(D, D)``.
        gram: ``S`` ``(D, D)``.
        regularization: ``reg``, above 0; bounds the length where the edit has removed almost all.

    Returns:
        Rows ``c'`` ``(N, D)``.
    """
    gram_times_edit = gram @ edit
    identity = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    system = regularization * identity + edit.mT @ gram_times_edit
    solution: Tensor = torch.linalg.solve(system, concepts.double() @ gram_times_edit, left=False)
    return solution
