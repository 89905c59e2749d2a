"""RECE: reliable and efficient concept erasure (Gong et al., ECCV 2024, arXiv 2407.12383).

After a first edit, each epoch looks for the embedding that makes the edited maps ``W`` say what the
original maps ``W*`` said of the concept ``c``, and edits that too:

    ``c' = argmin sum_l |W_l c' - W*_l c|^2 + reg |c'|^2``, then ``W c' -> W a`` for the anchor
    ``a``.

Official code: CharlesGong12/RECE @ 403a67f, ``train_object.py``,
``utils/embedding_calculation/close_form_emb.py`` (``close_regzero``) and ``erase_methods/uce.py``.
Verified there: ``c'`` for all positions of the bare name over all K and V maps together; pairs by
position; targets, ridge and preservation of each epoch from the *current* weights; ``e, p, lamb``
of 1, 0.1, 0.1; every epoch begins again from ``c``. The first edit is UCE as of its paper's time
(f7222e6): from the last token of the words to the end of the padding, ``e, p, lamb`` of 1, 1, 0.5,
the empty prompt preserved. Its ``reg`` x epochs: 0.1 x 3 (nudity), 0.1 x 2 (unsafe), 1e-3 x 1
(styles, hard things), 0.1 x 1 (easy things). Its anchor is empty (``' '``) unless concepts are
guided. As published it keeps little of the emoji world; a retention callback, which our config has,
is not the paper's.

Different here: every map is ``W* M`` with one ``M``, so ``c'`` needs ``S = sum_l W*_l^T W*_l``
alone and an epoch costs the same for any number of maps; float64; what retention callbacks hold
joins the preserved prompts. Left out: the early stop on validation pictures, which keeps the best
epoch by a detector's rate.

Cost: no UNet evaluation; two text encodings a concept, and two factorisations an epoch.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from erasure_lightning.backbones.interface import TextInput
from erasure_lightning.concepts.concept import PromptBatch
from erasure_lightning.errors import ErasureError
from erasure_lightning.training.closed_form import ClosedFormErasure
from erasure_lightning.training.prompt_states import last_token_states
from erasure_lightning.training.regression import Regression, corrected

#: Weight of the preserved prompts, and ridge, of the first edit.
FIRST_PRESERVE, FIRST_RIDGE = 1.0, 0.5

#: Sentences encoded at once.
CHUNK = 64


class RECE(ClosedFormErasure):
    """Repeats UCE on the embeddings that would bring the concept back.

    Args:
        epochs: How often adversarial embeddings are found and edited; 0 leaves the first edit.
        regularization: ``reg`` of an adversarial embedding's length, above 0.
        preserve: Prompts of which every position is held; the empty prompt by default.
        preserve_scale: Weight ``p`` of each of their positions in an epoch, at least 0.
        ridge: Pull ``lamb`` of an epoch towards the weights before it, above 0.
        kwargs: Arguments of every method.

    Raises:
        ErasureError: If a number is out of range.
    """

    def __init__(
        self,
        *,
        epochs: int = 1,
        regularization: float = 1e-3,
        preserve: list[str] | None = None,
        preserve_scale: float = 0.1,
        ridge: float = 0.1,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if min(epochs, preserve_scale) < 0 or min(regularization, ridge) <= 0:
            raise ErasureError(
                "RECE needs epochs and preserve_scale of at least 0, regularization and ridge"
                f" above 0; found {epochs}, {preserve_scale}, {regularization} and {ridge}."
            )
        self.epochs = epochs
        self.regularization = regularization
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
            solution |= source.named(
                [corrected(weight, edit - identity) for weight in source.weights()]
            )
        return solution

    def first_edit(self, source: TextInput) -> Tensor:
        """``M`` ``(D, D)`` of UCE on the last token of the concepts' words and all that follows."""
        equations = self._preserving(FIRST_PRESERVE, source)
        for batch in self._chunks():
            equations.redirect(*last_token_states(self.original, batch, source, tail=True))
        correction = equations.correction(FIRST_RIDGE)
        return (
            torch.eye(len(correction), dtype=correction.dtype, device=correction.device)
            + correction
        )

    def epoch(self, edit: Tensor, gram: Tensor, source: TextInput) -> Tensor:
        """``M`` after one more edit, of what would bring the concepts back past the edit so far.

        Args:
            edit: ``M`` so far, ``(D, D)``.
            gram: ``S`` ``(D, D)``.
            source: The maps.
        """
        equations = self._preserving(self.preserve_scale, source)
        for batch in self._chunks():
            both = (self.original.encode(prompts) for prompts in (batch.prompts, batch.targets))
            concepts, anchors = (source.rows(prompts).flatten(0, 1) for prompts in both)
            equations.redirect(adversarial(concepts, edit, gram, self.regularization), anchors)
        return edit + edit @ equations.correction(self.ridge)

    def _chunks(self) -> Iterator[PromptBatch]:
        """The concepts' bare names, `CHUNK` at a time."""
        for i in range(0, len(self.concepts), CHUNK):
            some = self.concepts[i : i + CHUNK]
            yield PromptBatch(["{}"] * len(some), [c.name for c in some], [c.anchor for c in some])

    def _preserving(self, weight: float, source: TextInput) -> Regression:
        """Equations that hold the preserved prompts, and whatever retention callbacks hold."""
        equations = Regression(self.retention_gram(source))
        if self.preserve:
            equations.keep(source.rows(self.original.encode(self.preserve)).flatten(0, 1), weight)
        return equations


def sum_of_grams(weights: list[Tensor]) -> Tensor:
    """``S = sum_l W_l^T W_l`` of maps ``(out, D)``, in float64 ``(D, D)``."""
    stacked = torch.cat([weight.double() for weight in weights])
    return stacked.mT @ stacked


def adversarial(concepts: Tensor, edit: Tensor, gram: Tensor, regularization: float) -> Tensor:
    """What the edited maps must read, in the rows' stead, to say what the originals said of them.

    ``c' = (reg I + M^T S M)^-1 M^T S c``: the official normal equations with ``W_l = W*_l M``.

    Args:
        concepts: Rows ``c`` ``(N, D)``.
        edit: ``M`` ``(D, D)``.
        gram: ``S`` ``(D, D)``.
        regularization: ``reg``, above 0; bounds the length where the edit has left next to nothing.
    """
    said = gram @ edit
    identity = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    found: Tensor = torch.linalg.solve(
        regularization * identity + edit.mT @ said, concepts.double() @ said, left=False
    )
    return found
