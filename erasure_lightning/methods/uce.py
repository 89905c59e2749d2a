"""UCE: unified concept editing (Gandikota et al., WACV 2024, arXiv 2308.14761).

Every map ``W`` that reads text is solved for at once, so that the last token of a concept ``c_i``
comes out as the last token of its anchor ``g_i`` did:

    ``J(W) = e sum_i |W c_i - W* g_i|^2 + p sum_j |W p_j - W* p_j|^2 + lamb |W - W*|^2``

Official code: rohitgandikota/unified-concept-editing @ 28c81ed, ``trainscripts/uce_sd_erase.py``.
Verified there: the objective and its three weights, one token a concept, sums (not means) over
concepts, all targets of the original weights; so the order of concepts has no influence. An empty
anchor is, there and here, the token in front of where the concept's words stand: the start token
for the bare name, ``of`` in ``image of {}``. Different here: float64 in place of float32; templates
are named, where the code has a switch for five of its own; and what retention callbacks hold joins
the ``p_j``; where words follow the place in a template, the code takes the sentence's last token
for the subject's. The code of the paper's time (@ f7222e6) edits the rows behind the last token
too, as `RECE` does first.

Cost: no UNet evaluation; two text encodings a concept and template, and one factorisation for all
    maps.
"""

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from erasure_lightning.backbones.interface import TextInput
from erasure_lightning.concepts.concept import PromptBatch
from erasure_lightning.errors import ErasureError
from erasure_lightning.training.closed_form import ClosedFormErasure
from erasure_lightning.training.prompt_states import last_token_states
from erasure_lightning.training.regression import Regression

#: Sentences encoded at once.
CHUNK = 64


class UCE(ClosedFormErasure):
    """Maps the concept's last token to its anchor's, in closed form.

    Args:
        templates: Sentences with ``{}`` for the words, in which the last token is redirected; the
            bare name by default.
        preserve: Prompts whose last token's images stay; none by default. Retention callbacks hold
            whole prompts.
        erase_scale: Weight ``e`` of each concept and template, at least 0.
        preserve_scale: Weight ``p`` of each prompt in ``preserve``, at least 0.
        ridge: Pull ``lamb`` towards the original weights, above 0.
        kwargs: Arguments of every method.

    Raises:
        ErasureError: If a weight is out of range, or a template has no place for the words.
    """

    def __init__(
        self,
        *,
        templates: list[str] | None = None,
        preserve: list[str] | None = None,
        erase_scale: float = 1.0,
        preserve_scale: float = 1.0,
        ridge: float = 0.5,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if min(erase_scale, preserve_scale) < 0 or ridge <= 0:
            raise ErasureError(
                "UCE needs erase_scale and preserve_scale of at least 0 and a ridge above 0; found "
                f"{erase_scale}, {preserve_scale} and {ridge}."
            )
        if bad := [t for t in templates or () if "{}" not in t]:
            raise ErasureError(
                f"UCE needs {{}} in every template for the concept's words; found {bad[0]!r}."
            )
        self.templates = templates or ["{}"]
        self.preserve = preserve or []
        self.erase_scale, self.preserve_scale, self.ridge = erase_scale, preserve_scale, ridge

    def solve(self) -> dict[str, Tensor]:
        """``W = W* (I + C)`` for every map, with the one ``C`` that minimises ``J``."""
        return self.solve_each(self._fill, self.ridge)

    def _fill(self, equations: Regression, source: TextInput) -> None:
        for batch in self._redirected():
            equations.redirect(*last_token_states(self.original, batch, source), self.erase_scale)
        for batch in _chunks("{}", self.preserve, self.preserve):
            equations.keep(last_token_states(self.original, batch, source)[0], self.preserve_scale)

    def _redirected(self) -> Iterator[PromptBatch]:
        """Every concept in every template."""
        concepts, anchors = [c.name for c in self.concepts], [c.anchor for c in self.concepts]
        for template in self.templates:
            yield from _chunks(template, concepts, anchors)


def _chunks(template: str, concepts: list[str], anchors: list[str]) -> Iterator[PromptBatch]:
    """The words in a template, `CHUNK` sentences at a time."""
    for i in range(0, len(concepts), CHUNK):
        words = concepts[i : i + CHUNK]
        yield PromptBatch([template] * len(words), words, anchors[i : i + CHUNK])
