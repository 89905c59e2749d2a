import pytest
import torch

from erasure_lightning.attacks.prompt_slots import Slots
from erasure_lightning.backbones.conditioning import CONCEPT, TEMPLATE
from erasure_lightning.backbones.tiny import TinyBackbone
from erasure_lightning.errors import ErasureError


@pytest.fixture(params=["{} a cat", "{}", "a photo of {} in a house"])
def slots(request):
    return Slots(TinyBackbone(), request.param, 3)


def test_words_in_the_places_are_read_as_the_prompt_that_is_spelt(slots):
    choice = slots.lot(1)
    (filled,), (wanted,) = slots.read(choice), slots.backbone.embed([slots.spelt(choice[0])])
    assert torch.equal(filled.ids, wanted.ids)
    assert torch.equal(filled.embeddings, wanted.embeddings)
    assert torch.equal(filled.ends, wanted.ends)


def test_a_mixture_of_one_word_is_that_word(slots):
    choice = slots.lot(1)
    weights = torch.nn.functional.one_hot(choice[0], len(slots.words)).float()
    assert torch.allclose(slots.mixed(weights)[0].embeddings, slots.read(choice)[0].embeddings)
    assert torch.equal(slots.mixed(weights)[0].ids, slots.read(choice)[0].ids)


def test_slopes_reach_the_free_places_and_nothing_else(slots):
    rows = torch.randn(2, 3, 32, requires_grad=True)
    (filled,) = slots.filled([rows], slots.words[slots.lot(2)])
    assert filled.embeddings.shape == (2, 16, 32)
    assert torch.equal(filled.embeddings[filled.positions(CONCEPT)].view(2, 3, 32), rows)
    filled.embeddings.sum().backward()
    assert torch.equal(rows.grad, torch.ones_like(rows))
    assert torch.equal(
        filled.embeddings[0][filled.roles[0] == TEMPLATE],
        slots.embedded[0].embeddings[0][filled.roles[0] == TEMPLATE],
    )


def test_every_word_of_the_vocabulary_is_read_as_itself():
    backbone = TinyBackbone()
    words = backbone.words()
    assert {"cat", "photo", "up"} <= {backbone.spell(word.view(1)) for word in words}
    for i in range(0, len(words), 10):
        group = words[i : i + 10]
        assert (
            backbone.embed([backbone.spell(group)])[0].ids[0, 1 : len(group) + 1].tolist()
            == group.tolist()
        )


def test_more_places_than_the_encoder_has():
    with pytest.raises(
        ErasureError, match=r"TinyBackbone has no room for 15 tokens in '\{\} a cat'\. Try fewer"
    ):
        Slots(TinyBackbone(), "{} a cat", 15)
