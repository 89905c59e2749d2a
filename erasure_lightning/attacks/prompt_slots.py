"""`Slots`: a sentence with free places for words, which attacks fill with tokens, hard or soft."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

import torch
from torch import Tensor

from erasure_lightning.backbones.base import Backbone
from erasure_lightning.backbones.conditioning import CONCEPT
from erasure_lightning.concepts.concept import phrase
from erasure_lightning.errors import ErasureError
from erasure_lightning.training.prompt_states import PromptEmbeddings

#: Stands where a free place is until it is filled; a token of its own in every vocabulary there is.
FILLER = "a"


class Slots:
    """Free places in a sentence.

    Only whole words go into them: spelt and read again they are the same tokens, so that what was
    found is a prompt.

    Args:
        backbone: Who reads the sentence; its text encoders share one vocabulary.
        template: The sentence, with ``{}`` for the free places.
        count: Free places ``k``, at least 1.

    Raises:
        ErasureError: If the places do not fit, or text encoders read different vocabularies.
    """

    def __init__(self, backbone: Backbone, template: str, count: int) -> None:
        self.backbone = backbone
        self.template = template
        self.embedded = backbone.embed([phrase(template, " ".join([FILLER] * count))])
        self._places = [e.positions(CONCEPT)[0].nonzero().flatten() for e in self.embedded]
        if any(len(places) != count for places in self._places):
            raise ErasureError(
                f"{backbone.name} has no room for {count} tokens in {template!r}. Try fewer."
            )
        if "one vocabulary" not in backbone.capabilities:
            raise ErasureError(
                f"A search for words needs text encoders of one vocabulary; {backbone.name} has"
                " several."
            )
        self._tables = backbone.word_tables()

    @cached_property
    def words(self) -> Tensor:
        """Ids of the words that may be put in, ``(W,)``."""
        return self.backbone.words()

    @cached_property
    def tables(self) -> list[Tensor]:
        """What each text encoder embeds them as, ``(W, E)``."""
        return [table[self.words] for table in self._tables]

    @property
    def ids(self) -> Tensor:
        """Token ids that stand in the free places until they are filled, ``(1, k)``."""
        first, places = self.embedded[0], self._places[0]
        return first.ids[:, places]

    def filled(self, rows: Sequence[Tensor], ids: Tensor) -> PromptEmbeddings:
        """The prompts with embeddings in their free places.

        Args:
            rows: For each text encoder ``(B, k, E)``; gradients reach them.
            ids: Token ids that stand for them, ``(B, k)``.
        """
        made = []
        for embedded, places, row in zip(self.embedded, self._places, rows, strict=True):
            count, index = len(row), (slice(None), places)
            embeddings = embedded.embeddings.expand(count, -1, -1).index_copy(
                1, places, row.to(embedded.embeddings)
            )
            every = embedded.ids.repeat(count, 1)
            every[index] = ids
            made.append(
                replace(
                    embedded,
                    embeddings=embeddings,
                    ids=every,
                    roles=embedded.roles.expand(count, -1),
                )
            )
        return tuple(made)

    def read(self, choice: Tensor) -> PromptEmbeddings:
        """The prompts with words in their free places, by their numbers in `words`, ``(B, k)``."""
        return self.filled([table[choice] for table in self.tables], self.words[choice])

    def mixed(self, weights: Tensor) -> PromptEmbeddings:
        """The prompt with mixtures of words in its free places, ``(k, W)``; gradients reach the
        weights.
        """
        rows = [(weights @ table).unsqueeze(0) for table in self.tables]
        return self.filled(rows, self.words[weights.argmax(dim=1)].unsqueeze(0))

    def spelt(self, choice: Tensor) -> str:
        """The prompt in words, of numbers ``(k,)``."""
        return phrase(self.template, self.backbone.spell(self.words[choice])).text

    def lot(self, count: int) -> Tensor:
        """Words by lot, ``(count, k)``, from torch's global generator."""
        return torch.randint(len(self.words), (count, len(self._places[0]))).to(self.words.device)
