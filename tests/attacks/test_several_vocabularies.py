"""Words that several text encoders read, each with a vocabulary of its own."""

import pytest
import torch

from erasure_lightning.attacks.prompt_slots import PromptSlots
from erasure_lightning.backbones.tiny import TinyFlux, TinySD3, TinyXL
from erasure_lightning.backbones.tiny_parts import TINY_WORDS


def test_the_words_are_those_that_are_one_token_in_every_vocabulary():
    slots = PromptSlots(TinyFlux(), "a {}", 2)
    spelled = {slots.backbone.spell(word.view(1)) for word in slots.words}
    assert {"cat", "photo", "up"} <= spelled
    assert spelled <= set(TINY_WORDS) | {chr(c) for c in range(33, 127)}


@pytest.mark.parametrize("family", [TinyXL, TinySD3, TinyFlux])
def test_filled_words_equal_the_spelled_prompt_in_every_encoder(family):
    slots = PromptSlots(family(), "a photo of {} in a house", 2)
    choice = slots.sample(1)
    expected = slots.backbone.embed([slots.spell(choice[0])])
    for filled, spelled in zip(
        slots.fill([table[choice] for table in slots.tables], choice), expected, strict=True
    ):
        assert torch.equal(filled.ids, spelled.ids)
        assert torch.equal(filled.embeddings, spelled.embeddings)
