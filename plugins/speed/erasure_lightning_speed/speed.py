"""SPEED: null-space constrained erasure (Li et al., ICLR 2026, arXiv 2503.07392v2).

For every value map ``W*`` it solves for the update ``D`` that maps the last token of each concept
``c`` to the image of its anchor's ``a``, in the null space of retained embeddings and without any
change of the empty prompt's:

    ``min_D mean |(W* + D P) c - W* a|^2 + r |D P|^2`` subject to ``D P C = 0``

``P`` projects on the null space of the retained rows ``R`` (filtered by influence, then augmented);
``C`` is the start token and three centres of the empty prompt's other rows.

Official code: Ouxiang-Li/SPEED @ 6d3df0c, ``train_erase_null.py``. Verified there: the update, the
mean over concepts, one token each, the three steps that make ``R``, the threshold (absolute, of the
mean Gram matrix), the softening ``l`` of the constraint.

Where ours differs: all augmented rows of a layer are filtered at once and not in chunks of 128;
centres are initialised at equally spaced rows and not at random ones; everything is solved in a
basis of the null space, in float64; an empty null space is an error, where the code would edit
nothing; its special treatments of ``nudity`` and of the empty prompt as the only retained text
(every row of the prompt) are left out: of ``""`` ours retains the start token. What retention
callbacks retain joins the objective, ``|D P p|^2`` for their rows.

On SD 3 and FLUX no value map reads the prompt alone: there the maps are the entries of the text's
tokens and of its pooled vector, each with rows of its own, where ``C`` of the pooled vector is the
empty prompt's. The official code has SD 1.x alone.

Cost: no UNet evaluation; an eigendecomposition and a singular value decomposition for every value
map.
"""

from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from erasure_lightning.backbones.base import Backbone
from erasure_lightning.backbones.interface import TextInput
from erasure_lightning.checks import require
from erasure_lightning.concepts.concept import PromptBatch, require_templates
from erasure_lightning.concepts.prompt_lists import read_prompt_list, without_concepts
from erasure_lightning.concepts.vocabulary import Vocabulary
from erasure_lightning.errors import ErasureError
from erasure_lightning.seeding import derive_seed
from erasure_lightning.training.closed_form import ClosedFormErasure
from erasure_lightning.training.prompt_states import last_token_states
from erasure_lightning_speed.null_space import Rows, centres, null_space, refined, update


class SPEED(ClosedFormErasure):
    """Edits value maps, or the text's entries, in the null space of what is retained.

    Args:
        templates: Sentences with ``{}`` for the words (and ``{thing}`` for something retained), in
            which concepts are redirected and labels retained; the bare words by default, as in the
            official code.
        retain: Texts whose last token's values are retained (officially ``""``, or a CSV), a text
            file with one a line, or the name of a shipped list (``artists``); those that name a
            concept or a word of its domain are left out. Default: the world's other labels,
            everyday things where there is no world.
        filter: Retain only rows that an unconstrained edit would move by more than the mean.
        augment: Number of noisy copies of each retained row, at least 0; 0 also means no filter, as
            in the official code.
        threshold: Eigenvalue of the retained rows' mean Gram matrix below which a direction is
            free, above 0. Relates to squared lengths of states: of about 780 in Stable Diffusion
            1.x and 250 in the emoji world.
        retain_scale: ``r``, the pull towards the original weights, above 0 (officially 0.05, and no
            filter, for ten celebrities).
        soften: ``l``, softening of the constraint, at least 0; at 0 the empty prompt's rows are
            retained exactly.
        kwargs: Arguments of `ErasureModule`.

    Raises:
        ErasureError: If a number is out of range, a template has no place for the words, or the
            file cannot be read.
    """

    def __init__(
        self,
        *,
        templates: list[str] | None = None,
        retain: list[str] | str | None = None,
        filter: bool = True,
        augment: int = 10,
        threshold: float = 0.1,
        retain_scale: float = 1.0,
        soften: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        require("SPEED", at_least=0, augment=augment, soften=soften)
        require("SPEED", above=0, threshold=threshold, retain_scale=retain_scale)
        require_templates("SPEED", templates or ())
        self.templates = templates or ["{}"]
        self.retain = read_prompt_list(retain, "SPEED") if isinstance(retain, str) else retain
        self.filter = filter
        self.augment = augment
        self.threshold = threshold
        self.retain_scale = retain_scale
        self.soften = soften

    def editable(self) -> dict[str, nn.Parameter]:
        """The value maps among the text layers; the text's entries where it has none."""
        return {
            f"{name}.weight": cast(nn.Parameter, layer.weight)
            for source in _edited_inputs(self.backbone)
            for name, layer in source.layers.items()
        }

    def solve(self) -> dict[str, Tensor]:
        """``W* + D`` for every map."""
        generator = torch.Generator().manual_seed(derive_seed(self.seed, 7))
        solution: dict[str, Tensor] = {}
        for source in _edited_inputs(self.original):
            rows = self.rows(source)
            held = self.retention_gram(source)
            solved = []
            for each in source.weights():
                weight = each.detach().double()
                retained = refined(weight, rows, self.augment, self.filter, generator)
                free = null_space(retained, self.threshold)
                change = update(weight, rows, free, held, self.retain_scale, self.soften)
                solved.append(weight + change)
            solution |= source.named(solved)
        return solution

    def rows(self, source: TextInput) -> Rows:
        """The original's inputs of concepts, anchors, retained texts and the empty prompt."""
        empty = source.rows(self.original.encode([""]))[0].double()
        concepts, anchors = self._last_tokens(
            source,
            [concept.name for concept in self.concepts],
            [concept.anchor for concept in self.concepts],
        )
        texts = self.retained_texts()
        retained, _ = self._last_tokens(source, texts, texts)
        if source.source == "tokens":
            empty = torch.cat((empty[:1], centres(empty[1:])))
        return Rows(concepts, anchors, retained, empty)

    def _last_tokens(
        self, source: TextInput, words: list[str], anchors: list[str]
    ) -> tuple[Tensor, Tensor]:
        """Inputs at the last token of words and of anchors in every template, ``(N, D)`` both."""
        word_states = []
        anchor_states = []
        for template in self.prompts.with_things(self.templates):
            for batch in PromptBatch.of_words(template, words, anchors):
                pair = last_token_states(self.original, batch, source)
                word_states.append(pair[0])
                anchor_states.append(pair[1])
        return torch.cat(word_states).double(), torch.cat(anchor_states).double()

    def retained_texts(self) -> list[str]:
        """The retained texts, without those that name a concept or a word of its domain.

        Raises:
            ErasureError: If no text remains.
        """
        texts = self.retain
        if texts is None:
            texts = Vocabulary(self.original.world, self.concepts).others
        retained = without_concepts(dict.fromkeys(texts), self.concepts)
        if not retained:
            raise ErasureError(
                "SPEED needs something to retain that holds no concept's words; found no such text."
            )
        return retained


def _edited_inputs(backbone: Backbone) -> list[TextInput]:
    """The text inputs with the layers that are edited."""
    inputs = backbone.text_inputs()
    values = backbone.value_layers()
    return [replace(inputs[0], layers=values)] if values else inputs
