"""UCE: unified concept editing (Gandikota et al., WACV 2024, arXiv 2308.14761).

For every map ``W`` that reads text it minimises

    ``J(W) = e sum_i |W c_i - W* g_i|^2 + p sum_j |W p_j - W* p_j|^2 + lamb |W - W*|^2``

in closed form: the last token of a concept ``c_i`` is mapped to where the original ``W*`` maps the
last token of its anchor ``g_i``, and the outputs for preserved tokens ``p_j`` do not change.

Official code: rohitgandikota/unified-concept-editing @ 28c81ed, ``trainscripts/uce_sd_erase.py``.
Verified there: the objective and its three weights, one token a concept, sums (not means) over
concepts, all targets from the original weights, so that the order of concepts has no influence. An
empty anchor is, there and here, the token before the place of the concept's words: the start token
for the bare name, ``of`` in ``image of {}``.

Where ours differs: float64, not float32; templates are an argument, where the code has a switch for
five of its own; what retention callbacks retain is added to the ``p_j``; where a template continues
after the words, the code takes the sentence's last token for the subject's. The code of the paper's
time (@ f7222e6) also edits the rows after the last token, as the first edit of `RECE` does.

Cost: no UNet evaluation; two text encodings a concept and template, and one factorisation for all
maps.
"""

from typing import Any

from torch import Tensor

from erasure_lightning.backbones.interface import TextInput
from erasure_lightning.checks import require
from erasure_lightning.concepts.concept import PromptBatch, require_templates
from erasure_lightning.training.closed_form import ClosedFormErasure
from erasure_lightning.training.prompt_states import last_token_states
from erasure_lightning.training.regression import Regression


class UCE(ClosedFormErasure):
    """Maps the concept's last token to its anchor's, in closed form.

    Args:
        templates: Sentences with ``{}`` for the words (and ``{thing}`` for something retained), in
            which the last token is redirected; the bare name by default.
        preserve: Prompts whose last token's images are retained; none by default. Retention
            callbacks retain whole prompts.
        erase_scale: Weight ``e`` of each concept and template, at least 0.
        preserve_scale: Weight ``p`` of each prompt in ``preserve``, at least 0.
        ridge: Pull ``lamb`` towards the original weights, above 0.
        kwargs: Arguments of `ErasureModule`.

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
        require("UCE", at_least=0, erase_scale=erase_scale, preserve_scale=preserve_scale)
        require("UCE", above=0, ridge=ridge)
        require_templates("UCE", templates or ())
        self.templates = templates or ["{}"]
        self.preserve = preserve or []
        self.erase_scale = erase_scale
        self.preserve_scale = preserve_scale
        self.ridge = ridge

    def solve(self) -> dict[str, Tensor]:
        """The minimiser ``W = W* (I + C)`` of ``J`` for every map, with one ``C`` for all."""
        return self.solve_each(self._fill, self.ridge)

    def _fill(self, equations: Regression, source: TextInput) -> None:
        """Adds the terms of the concepts and of the preserved prompts."""
        names = [concept.name for concept in self.concepts]
        anchors = [concept.anchor for concept in self.concepts]
        for template in self.prompts.with_things(self.templates):
            for batch in PromptBatch.of_words(template, names, anchors):
                pairs = last_token_states(self.original, batch, source)
                equations.redirect(*pairs, self.erase_scale)
        for batch in PromptBatch.of_words("{}", self.preserve, self.preserve):
            preserved, _ = last_token_states(self.original, batch, source)
            equations.keep(preserved, self.preserve_scale)
