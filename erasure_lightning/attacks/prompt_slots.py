"""`PromptSlots`: a sentence with slots that attacks fill with words or embeddings."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

import torch
from torch import Tensor

from erasure_lightning.backbones.base import Backbone
from erasure_lightning.backbones.conditioning import CONCEPT
from erasure_lightning.concepts.concept import fill_template
from erasure_lightning.errors import ErasureError
from erasure_lightning.training.prompt_states import PromptEmbeddings

# Placeholder of an empty slot; one token in every vocabulary.
_FILLER = "a"


class PromptSlots:
    """A sentence with token slots.

    Only whole words fill them: spelled and tokenized again they are the same tokens, so that the
    result of an attack is a prompt.

    Args:
        backbone: The model that encodes the sentence; its text encoders share one vocabulary.
        template: The sentence, with ``{}`` for the slots.
        count: Number of slots ``k``, at least 1.

    Raises:
        ErasureError: If the slots do not fit, or text encoders have different vocabularies.
    """

    def __init__(self, backbone: Backbone, template: str, count: int) -> None:
        self.backbone = backbone
        self.template = template
        self.embedded = backbone.embed([fill_template(template, " ".join([_FILLER] * count))])
        self._positions = [e.positions(CONCEPT)[0].nonzero().flatten() for e in self.embedded]
        if any(len(positions) != count for positions in self._positions):
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
        """Token ids of the ``W`` whole words, ``(W,)``."""
        return self.backbone.words()

    @cached_property
    def tables(self) -> list[Tensor]:
        """Embeddings of the words for each text encoder, ``(W, E)``."""
        return [table[self.words] for table in self._tables]

    @property
    def ids(self) -> Tensor:
        """Placeholder token ids of the slots, ``(1, k)``."""
        return self.embedded[0].ids[:, self._positions[0]]

    def fill(self, rows: Sequence[Tensor], ids: Tensor) -> PromptEmbeddings:
        """The prompts with embeddings in their slots.

        Args:
            rows: Embeddings for each text encoder, ``(B, k, E)``; gradients reach them.
            ids: Token ids that stand for them, ``(B, k)``.
        """
        prompts = []
        for embedded, positions, row in zip(self.embedded, self._positions, rows, strict=True):
            count = len(row)
            embeddings = embedded.embeddings.expand(count, -1, -1)
            all_ids = embedded.ids.repeat(count, 1)
            all_ids[:, positions] = ids
            filled = replace(
                embedded,
                embeddings=embeddings.index_copy(1, positions, row.to(embeddings)),
                ids=all_ids,
                roles=embedded.roles.expand(count, -1),
            )
            prompts.append(filled)
        return tuple(prompts)

    def fill_words(self, choice: Tensor) -> PromptEmbeddings:
        """The prompts with words in their slots, by indices into `words`, ``(B, k)``."""
        return self.fill([table[choice] for table in self.tables], self.words[choice])

    def fill_mixture(self, weights: Tensor) -> PromptEmbeddings:
        """The prompt with mixtures of words in its slots.

        Args:
            weights: Weight of each word in each slot, ``(k, W)``; gradients reach them.
        """
        rows = [(weights @ table).unsqueeze(0) for table in self.tables]
        return self.fill(rows, self.words[weights.argmax(dim=1)].unsqueeze(0))

    def spell(self, choice: Tensor) -> str:
        """The prompt as text, by indices into `words`, ``(k,)``."""
        return fill_template(self.template, self.backbone.spell(self.words[choice])).text

    def sample(self, count: int) -> Tensor:
        """Random indices into `words`, ``(count, k)``, from torch's global generator."""
        return torch.randint(len(self.words), (count, len(self._positions[0]))).to(
            self.words.device
        )
