"""Word embeddings in prompts: words put before a sentence, or in the place of the concept's."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from erasure_lightning.backbones.base import Backbone
from erasure_lightning.backbones.conditioning import CONCEPT, END, START, TEMPLATE, Conditioning
from erasure_lightning.backbones.towers import EmbeddedPrompts
from erasure_lightning.concepts.concept import fill_template
from erasure_lightning.errors import ErasureError

#: Stands where an embedding will; one token in every vocabulary.
FILLER = "a"


def random_words(backbone: Backbone, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
    """Embeddings of random words for each text encoder, of its shape, float32, ``(*shape, E)``."""
    words = []
    for table, shape in zip(backbone.word_tables(), shapes, strict=True):
        ids = torch.randint(len(table), shape).to(table.device)
        words.append(table[ids].float())
    return words


@torch.no_grad()
def mean_embeddings(model: Backbone, words: str) -> list[Tensor]:
    """The mean token embedding of some words for each text encoder, ``(1, E)``."""
    return [
        e.embeddings[e.positions(CONCEPT)].mean(dim=0, keepdim=True)
        for e in model.embed([fill_template("{}", words)])
    ]


def encode_word(
    backbone: Backbone, templates: Sequence[str], word: Sequence[Tensor]
) -> Conditioning:
    """Encodes sentences with a learned word in the place of ``{}``, tokens ``(B, L, D)``.

    Args:
        backbone: The model that encodes them.
        templates: The ``B`` sentences.
        word: Its embeddings ``(B, E)`` or ``(1, E)`` for each text encoder; gradients reach them.
    """
    embedded = backbone.embed([fill_template(template, FILLER) for template in templates])
    prompts = [
        each.with_embeddings(rows.unsqueeze(1), CONCEPT)
        for each, rows in zip(embedded, word, strict=True)
    ]
    return backbone.contextualize(prompts)


def prepend_words(prompts: EmbeddedPrompts, words: Tensor) -> EmbeddedPrompts:
    """Prompts with words before them, and as much less padding at their end.

    Args:
        prompts: Prompts of ``L`` positions, of which only padding is dropped.
        words: Embeddings ``(B, k, E)``, inserted after the start token, where there is one.

    Raises:
        ErasureError: If there is too little padding.
    """

    def insert(values: Tensor, new: Tensor) -> Tensor:
        rest = values[:, first : values.shape[1] - words.shape[1]]
        return torch.cat((values[:, :first], new.to(values), rest), dim=1)

    first = int(prompts.roles[0, 0] == START)  # T5 has no start token
    # The words have no ids; that of the start token at least is no end of text.
    ids = prompts.ids[:, :1].expand(words.shape[:2])
    roles = insert(prompts.roles, torch.full_like(ids, TEMPLATE))
    if not (roles == END).any(dim=1).all():
        raise ErasureError(
            f"An adversarial prefix needs room for {words.shape[1]} tokens before each prompt;"
            " found a prompt that is too long. Shorten it, or use fewer tokens."
        )
    return replace(
        prompts,
        embeddings=insert(prompts.embeddings, words),
        ids=insert(prompts.ids, ids),
        roles=roles,
    )
