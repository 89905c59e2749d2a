import pytest
import torch

from erasure_lightning.attacks.prompt_slots import PromptSlots
from erasure_lightning.backbones.conditioning import CONCEPT, TEMPLATE
from erasure_lightning.backbones.tiny import TinyBackbone
from erasure_lightning.errors import ErasureError


@pytest.fixture(params=["{} a cat", "{}", "a photo of {} in a house"])
def slots(request):
    return PromptSlots(TinyBackbone(), request.param, 3)


def test_filled_words_equal_the_spelled_prompt(slots):
    choice = slots.sample(1)
    (filled,) = slots.fill([table[choice] for table in slots.tables], choice)
    (expected,) = slots.backbone.embed([slots.spell(choice[0])])
    assert torch.equal(filled.ids, expected.ids)
    assert torch.equal(filled.embeddings, expected.embeddings)
    assert torch.equal(filled.ends, expected.ends)


def test_a_mixture_of_one_word_is_that_word(slots):
    choice = slots.sample(1)
    weights = torch.nn.functional.one_hot(choice[0], len(slots.words)).float()
    (mixture,) = slots.fill_mixture(weights)
    (expected,) = slots.fill([table[choice] for table in slots.tables], choice)
    assert torch.allclose(mixture.embeddings, expected.embeddings)
    assert torch.equal(mixture.ids, expected.ids)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_words_are_searched_in_float32(precision):
    """An optimizer's small steps would be rounded away in bfloat16."""
    backbone = TinyBackbone().to(precision)
    slots = PromptSlots(backbone, "{} a cat", 3)
    (table,) = slots.tables
    assert table.dtype == torch.float32
    assert torch.equal(table, backbone.word_tables()[0][slots.words].float())


def test_gradients_reach_the_slots_alone(slots):
    rows = torch.randn(2, 3, 32, requires_grad=True)
    (filled,) = slots.fill([rows], slots.sample(2))
    assert filled.embeddings.shape == (2, 16, 32)
    assert torch.equal(filled.embeddings[filled.positions(CONCEPT)].view(2, 3, 32), rows)
    filled.embeddings.sum().backward()
    assert torch.equal(rows.grad, torch.ones_like(rows))
    template = filled.roles[0] == TEMPLATE
    expected = slots.embedded[0].embeddings[0][template]
    assert torch.equal(filled.embeddings[0][template], expected)


def test_every_word_of_the_vocabulary_is_tokenized_as_itself():
    backbone = TinyBackbone()
    words = backbone.words()
    assert {"cat", "photo", "up"} <= {backbone.spell(word.view(1)) for word in words}
    for i in range(0, len(words), 10):
        group = words[i : i + 10]
        (embedded,) = backbone.embed([backbone.spell(group)])
        assert torch.equal(embedded.ids[0, 1 : len(group) + 1], group)


def test_more_slots_than_the_encoder_has_positions():
    with pytest.raises(
        ErasureError, match=r"TinyBackbone has no room for 15 tokens in '\{\} a cat'\. Try fewer"
    ):
        PromptSlots(TinyBackbone(), "{} a cat", 15)
