"""`PromptSlots`: a prompt with slots that attacks fill with words or embeddings."""

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
from erasure_lightning.training.prompt_words import FILLER


class PromptSlots:
    """A prompt with token slots.

    Only whole words fill them: spelled and tokenized again they are the same tokens, so that the
    result of an attack is a prompt. Where text encoders have different vocabularies, these are the
    words that are one token in each of them.

    Args:
        backbone: The model that encodes the prompt.
        template: The prompt, with ``{}`` for the slots.
        count: Number of slots ``k``, at least 1.

    Raises:
        ErasureError: If the slots do not fit.
    """

    def __init__(self, backbone: Backbone, template: str, count: int) -> None:
        self.backbone = backbone
        self.template = template
        self.embedded = backbone.embed([fill_template(template, " ".join([FILLER] * count))])
        self._positions = [e.positions(CONCEPT)[0].nonzero().flatten() for e in self.embedded]
        if any(len(positions) != count for positions in self._positions):
            raise ErasureError(
                f"{backbone.name} has no room for {count} tokens in {template!r}. Try fewer."
            )

    @cached_property
    def _ids(self) -> list[Tensor]:
        """Token ids of the words for each text encoder, ``(W,)``."""
        towers = self.backbone.towers
        if "one vocabulary" in self.backbone.capabilities:
            return [self.backbone.words()] * len(towers)
        spelled = [{t.spell(word.view(1)): word for word in t.words()} for t in towers]
        shared = [text for text in spelled[0] if all(text in words for words in spelled)]
        return [torch.stack([words[text] for text in shared]) for words in spelled]

    @property
    def words(self) -> Tensor:
        """Token ids of the ``W`` whole words in the first text encoder, ``(W,)``."""
        return self._ids[0]

    @cached_property
    def tables(self) -> list[Tensor]:
        """Embeddings of the words for each text encoder, at least float32, ``(W, E)``."""
        pairs = zip(self.backbone.word_tables(), self._ids, strict=True)
        return [table[ids].to(self.backbone.dtype) for table, ids in pairs]

    def fill(self, rows: Sequence[Tensor], choice: Tensor | None = None) -> PromptEmbeddings:
        """The prompts with embeddings in their slots.

        Args:
            rows: Embeddings for each text encoder, ``(B, k, E)``; gradients reach them.
            choice: The words that stand for them, as indices into `words`, ``(B, k)``; by default
                placeholders.
        """
        prompts = []
        for number, (embedded, row) in enumerate(zip(self.embedded, rows, strict=True)):
            positions = self._positions[number]
            count = len(row)
            embeddings = embedded.embeddings.expand(count, -1, -1)
            all_ids = embedded.ids.repeat(count, 1)
            if choice is not None:
                all_ids[:, positions] = self._ids[number][choice]
            filled = replace(
                embedded,
                embeddings=embeddings.index_copy(1, positions, row.to(embeddings)),
                ids=all_ids,
                roles=embedded.roles.expand(count, -1),
            )
            prompts.append(filled)
        return tuple(prompts)

    def fill_mixture(self, weights: Tensor) -> PromptEmbeddings:
        """The prompt with mixtures of words in its slots.

        Args:
            weights: Weight of each word in each slot, ``(k, W)``; gradients reach them.
        """
        rows = [(weights @ table).unsqueeze(0) for table in self.tables]
        return self.fill(rows, weights.argmax(dim=1).unsqueeze(0))

    def spell(self, choice: Tensor) -> str:
        """The prompt as text, by indices into `words`, ``(k,)``."""
        return fill_template(self.template, self.backbone.spell(self.words[choice])).text

    def sample(self, count: int) -> Tensor:
        """Random indices into `words`, ``(count, k)``, from torch's global generator."""
        return torch.randint(len(self.words), (count, len(self._positions[0]))).to(
            self.words.device
        )
