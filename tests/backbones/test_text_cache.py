from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace

import pytest
import torch

from erasure_lightning.backbones import towers
from erasure_lightning.backbones.conditioning import CONCEPT, END, PADDING, START, TEMPLATE
from erasure_lightning.backbones.text_cache import PROMPTS_PER_BATCH
from erasure_lightning.backbones.tiny import TinyBackbone
from erasure_lightning.concepts.concept import Concept, fill_template
from erasure_lightning.errors import ErasureError
from erasure_lightning.methods.esd import ESD
from erasure_lightning.methods.sage import SAGE
from erasure_lightning.testing import edit_of, quick_fit
from erasure_lightning.training.latent_sources import PureNoise

pytestmark = pytest.mark.usefixtures("models_encode_alone")

WORDS = ["cat", "dog", "star", "heart", "tree", "car", "boat", "bird", "fish", "house"]


@contextmanager
def reading(backbone):
    """Every sentence that the text encoder reads, in the order in which it does."""
    read = []
    embed = backbone.embed
    backbone.embed = lambda prompts: read.extend(prompts) or embed(prompts)
    try:
        yield read
    finally:
        del backbone.embed


def test_a_sentence_is_read_once(tiny):
    with reading(tiny) as read:
        first = tiny.encode(["a cat", "a dog", "a cat"]).tokens
        again = tiny.encode(["a dog", "a star"]).tokens
    assert list(dict.fromkeys(read)) == ["a cat", "a dog", "a star"]
    assert len(read) == 2 * PROMPTS_PER_BATCH  # each time a block
    assert torch.equal(first[0], first[2])
    assert torch.equal(first[1], again[0])


def test_it_is_what_the_encoder_says(tiny):
    prompts = [f"a {word}" for word in WORDS]
    tokens = tiny.contextualize(tiny.embed(prompts)).tokens
    assert torch.allclose(tiny.encode(prompts).tokens, tokens, atol=1e-6)


def test_company_does_not_matter(tiny):
    prompts = [fill_template("a photo of a {}", word) for word in WORDS]
    together = tiny.encode(prompts).tokens
    alone = torch.cat([TinyBackbone().encode([prompt]).tokens for prompt in prompts])
    assert torch.equal(together, alone)


def test_a_trained_encoder_is_asked_every_time(tiny):
    before = tiny.encode(["a cat"]).tokens
    for parameter in tiny.text_parameters(1).values():
        parameter.requires_grad_(True)
    assert tiny.encode(["a cat"]).tokens.requires_grad
    with torch.no_grad():
        next(iter(tiny.text_parameters(1).values())).mul_(1.5)
    assert not torch.allclose(tiny.encode(["a cat"]).tokens, before)


@pytest.mark.parametrize("trained", [True, False])
def test_an_original_shares_what_it_reads_with_the_same_eyes_alone(tiny, trained):
    copy = tiny.frozen_copy(
        tiny.text_parameters(1) if trained else tiny.cross_attention_parameters()
    )
    tiny.encode(["a cat"])
    with reading(copy) as read:
        copy.encode(["a cat"])
    assert bool(read) == trained


@pytest.mark.parametrize("change", ["weights", "loading", "precision", "autocast"])
def test_whatever_changes_the_encoder_is_seen(tiny, change):
    before = tiny.encode(["a cat"]).tokens
    if change == "weights":
        with torch.no_grad():
            next(iter(tiny.text_parameters(1).values())).mul_(1.5)
    elif change == "loading":
        tiny.load_state_dict(TinyBackbone(seed=1).state_dict())
    elif change == "precision":
        tiny.to(torch.float64)
    with torch.autocast("cpu", torch.bfloat16, enabled=change == "autocast"):
        after = tiny.encode(["a cat"]).tokens
        assert torch.equal(
            after, tiny.contextualize(tiny.embed(["a cat"] * PROMPTS_PER_BATCH)).tokens[:1]
        )
    assert not torch.equal(after.to(before), before)


def test_values_at_a_former_address_are_seen(tiny):
    """The second new storage often has the address of the first one, which is free again."""
    weight = tiny.text_encoders[0].model.get_parameter("encoder.layers.0.mlp.fc1.weight")
    for _ in range(50):
        before = tiny.encode(["a cat"]).tokens
        for _ in range(2):
            weight.data = torch.randn_like(weight)
        assert not torch.equal(tiny.encode(["a cat"]).tokens, before)


def test_a_copy_begins_empty(tiny):
    expected = tiny.encode(["a cat"]).tokens
    copied = deepcopy(tiny)
    assert not copied._text_cache._encoded
    assert torch.equal(copied.encode(["a cat"]).tokens, expected)


def test_memory_is_bounded_and_the_newest_stay(tiny):
    size = tiny.encode(["a cat"]).nbytes
    tiny._text_cache.limit = 3 * size
    prompts = [f"a {word}" for word in WORDS]
    together = tiny.encode(prompts).tokens
    assert torch.equal(together[0], tiny.encode(["a cat"]).tokens[0])
    assert list(tiny._text_cache._encoded) == ["a fish", "a house", "a cat"]
    tiny._text_cache.limit = 0
    assert torch.equal(tiny.encode(prompts).tokens, together)
    assert not tiny._text_cache._encoded


def test_what_was_read_while_drawing_can_be_trained_on(tiny):
    with torch.inference_mode():
        tiny.encode(["a cat"])
    layer = next(iter(tiny.text_layers().values())).requires_grad_(True)
    layer(tiny.encode(["a cat"]).tokens).sum().backward()
    assert layer.weight.grad is not None


def test_nothing_of_it_is_saved(tiny):
    before = set(tiny.state_dict())
    tiny.encode(["a cat"])
    assert set(tiny.state_dict()) == before


def test_tokens_are_remembered_by_the_sentence_and_where_its_concept_stands(tiny, monkeypatch):
    monkeypatch.setattr(towers, "_MAX_TOKENIZED", 3)
    prompts = [
        *(f"a {word}" for word in WORDS),
        fill_template("a {}", "cat"),
        fill_template("{} cat", "a"),
    ]
    first, again = ([tiny.embed([prompt])[0] for prompt in prompts] for _ in range(2))
    together = tiny.embed(prompts)[0]
    for place, (one, two) in enumerate(zip(first, again, strict=True)):
        for field in ("ids", "roles", "embeddings"):
            assert torch.equal(getattr(one, field), getattr(two, field))
            assert torch.equal(getattr(one, field)[0], getattr(together, field)[place])
    assert [first[i].roles.tolist() for i in (0, -2, -1)] == [
        [[START, *middle, END, *[PADDING] * 12]]
        for middle in ((TEMPLATE, TEMPLATE), (TEMPLATE, CONCEPT), (CONCEPT, TEMPLATE))
    ]


class TestOffloadedText:
    """Text encoders that are on the device only while they encode."""

    @pytest.fixture
    def moves(self, tiny, monkeypatch):
        """Devices that the text encoders are moved to."""
        devices = []
        to = tiny.text_encoders.to
        monkeypatch.setattr(tiny.text_encoders, "to", lambda d: devices.append(str(d)) or to(d))
        return devices

    def test_they_come_back_for_new_prompts_alone(self, tiny, moves):
        before = tiny.encode(["a cat", "a dog"])
        tiny.offload_text()
        assert moves == ["cpu"]
        assert torch.equal(tiny.encode(["a cat", "a dog"]).tokens, before.tokens)
        assert len(moves) == 3  # to the device and back
        tiny.encode(["a dog"])
        assert len(moves) == 3
        tiny.encode(["a bird"])
        assert len(moves) == 5

    def test_they_come_back_when_encoding_fails(self, tiny, moves, monkeypatch):
        tiny.offload_text()
        monkeypatch.setattr(tiny.towers[0], "encode", lambda embedded: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            tiny.encode(["a bird"])
        assert moves == ["cpu", "cpu", "cpu"]

    def test_no_gradient_flows_through_them(self, tiny, moves):
        tiny.offload_text()
        (prompts,) = tiny.embed(["a cat"])
        words = replace(prompts, embeddings=prompts.embeddings.requires_grad_())
        with pytest.raises(ErasureError, match="Leave offload_text false"):
            tiny.contextualize([words])

    def test_an_edit_is_the_same_with_and_without(self):
        edits = []
        for offload in (False, True):
            module = ESD(
                concepts=[Concept("cat")],
                backbone=TinyBackbone(),
                latents=PureNoise(),
                offload_text=offload,
            )
            edits.append(edit_of(quick_fit(module, 2)))
        assert edits[0].keys() == edits[1].keys()
        assert all(torch.equal(edits[0][name], edits[1][name]) for name in edits[0])

    def test_a_method_that_trains_them_is_refused(self):
        module = SAGE(concepts=[Concept("cat")], backbone=TinyBackbone(), offload_text=True)
        with pytest.raises(ErasureError, match="SAGE trains the text encoders"):
            quick_fit(module, 1)
