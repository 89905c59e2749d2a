"""SPEED: null-space constrained erasure (Li et al., ICLR 2026, arXiv 2503.07392v2).

For every value map ``W*`` it solves for the update ``D`` that moves the last token of each concept
``c`` to that of its anchor ``a`` inside a null space, where retained embeddings cannot feel it, and
that leaves the empty prompt alone:

    ``min_D mean |(W* + D P) c - W* a|^2 + r |D P|^2`` subject to ``D P C = 0``

``P`` projects on what the retained rows ``R`` (filtered by influence, then augmented) do not reach;
``C`` is the start token and three centres of the empty prompt's other rows.

Official code: Ouxiang-Li/SPEED @ 6d3df0c, ``train_erase_null.py``. Verified there: the update, the
mean over concepts, one token each, the three steps that make ``R``, the threshold (absolute, of the
mean Gram matrix), the softening ``l`` of the constraint. Different here: all rows of a layer that
were augmented are filtered at once and not in chunks of 128; centres begin at rows at equal
distances and not at random ones; everything is solved in a basis of the null space, in float64; a
null space of nothing is an error, where the code would edit nothing; its special treatment of
``nudity`` (every row of the prompt) is left out. What retention callbacks hold joins the objective,
``|D P p|^2`` for their rows.

Cost: no UNet evaluation; an eigendecomposition and a singular value decomposition for every value
    map.
"""

import re
from typing import Any, cast

import torch
from torch import Tensor, nn

from erasure_lightning.concepts.concept import PromptBatch
from erasure_lightning.concepts.vocabulary import Vocabulary
from erasure_lightning.errors import ErasureError
from erasure_lightning.files.text_files import read_prompts_file
from erasure_lightning.seeding import derive_seed
from erasure_lightning.training.closed_form import ClosedFormErasure
from erasure_lightning.training.prompt_states import last_token_states
from erasure_lightning_speed.null_space import Rows, centres, null_space, refined, update

#: Sentences encoded at once.
CHUNK = 64


class SPEED(ClosedFormErasure):
    """Edits the value maps in the null space of what is retained, in closed form.

    Args:
        templates: Sentences with ``{}`` for the words, in which concepts are redirected and labels
            retained; the bare words by default, as in the official code.
        retain: Texts whose last token's values stay (officially ``""``, or a CSV), or a text file
            with one a line; those that hold a concept's words are left out. Default: the world's
            other labels, everyday things where there is no world.
        filter: Retain only what an unconstrained edit would move by more than the mean.
        augment: Noisy copies of each retained row, at least 0; none also means no filter, as in the
            official code.
        threshold: Eigenvalue of the retained rows' mean Gram matrix below which a direction is
            free, above 0. Relates to squared lengths of states: of about 780 in Stable Diffusion
            1.x and 250 in the emoji world.
        retain_scale: ``r``, the pull towards the original weights, above 0 (officially 0.05, and no
            filter, for ten celebrities).
        soften: ``l``, 0 holds the empty prompt's rows exactly.
        kwargs: Arguments of every method.

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
        if min(augment, soften) < 0 or min(threshold, retain_scale) <= 0:
            raise ErasureError(
                "SPEED needs augment and soften of at least 0, threshold and retain_scale above 0;"
                f" found {augment}, {soften}, {threshold} and {retain_scale}."
            )
        if bad := [t for t in templates or () if "{}" not in t]:
            raise ErasureError(
                f"SPEED needs {{}} in every template for the words; found {bad[0]!r}."
            )
        self.templates = templates or ["{}"]
        self.given = read_prompts_file(retain, "SPEED") if isinstance(retain, str) else retain
        self.filter, self.augment = filter, augment
        self.threshold, self.retain_scale, self.soften = threshold, retain_scale, soften

    def editable(self) -> dict[str, nn.Parameter]:
        """The value maps among the text layers.

        Raises:
            ErasureError: If there are none.
        """
        values = self.backbone.value_layers()
        if not values:
            raise ErasureError(
                f"SPEED edits value maps of cross-attention; {self.backbone.name} has none."
            )
        return {
            f"{name}.weight": cast(nn.Parameter, layer.weight) for name, layer in values.items()
        }

    def solve(self) -> dict[str, Tensor]:
        """``W* + D`` for every value map."""
        rows, held = self.rows(), self.retention_gram(self.original.text_inputs()[0])
        generator = torch.Generator().manual_seed(derive_seed(self.seed, 7))
        solution = {}
        for name in self.editable():
            weight = self.original.get_parameter(name).detach().double()
            retained = refined(weight, rows, self.augment, self.filter, generator)
            free = null_space(retained, self.threshold)
            solution[name] = weight + update(
                weight, rows, free, held, self.retain_scale, self.soften
            )
        return solution

    def rows(self) -> Rows:
        """All text states that are needed, of the original."""
        names, anchors = [c.name for c in self.concepts], [c.anchor for c in self.concepts]
        empty = self.original.encode([""]).tokens[0].double()
        concepts, instead = self._last_tokens(names, anchors)
        texts = self.retained_texts()
        return Rows(
            concepts,
            instead,
            self._last_tokens(texts, texts)[0],
            torch.cat((empty[:1], centres(empty[1:]))),
        )

    def _last_tokens(self, words: list[str], instead: list[str]) -> tuple[Tensor, Tensor]:
        read = self.original.text_inputs()[0]
        pairs = [
            last_token_states(
                self.original,
                PromptBatch([template] * len(part), part, instead[i : i + CHUNK]),
                read,
            )
            for template in self.templates
            for i in range(0, len(words), CHUNK)
            if (part := words[i : i + CHUNK])
        ]
        concepts, anchors = zip(*pairs, strict=True)
        return torch.cat(concepts).double(), torch.cat(anchors).double()

    def retained_texts(self) -> list[str]:
        """What is retained, without the texts that hold a concept's words.

        Raises:
            ErasureError: If nothing is left.
        """
        texts = (
            self.given
            if self.given is not None
            else Vocabulary(self.original.world, self.concepts).others
        )
        concepts = [re.compile(rf"\b{re.escape(c.name)}\b", re.IGNORECASE) for c in self.concepts]
        kept = [
            text
            for text in dict.fromkeys(texts)
            if not any(words.search(text) for words in concepts)
        ]
        if not kept:
            raise ErasureError(
                "SPEED needs something to retain that holds no concept's words; found nothing."
            )
        return kept
