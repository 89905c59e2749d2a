"""Membranes and one-dimensional adapters: what they add, when they open, and that a pipeline does
as the module.
"""

import pytest
import torch
from shipped import numbers
from torch import nn

from erasure_lightning.adapters.semi_permeable import Membrane, SemiPermeable
from erasure_lightning.backbones.tiny import TinyBackbone
from erasure_lightning.concepts.concept import Concept
from erasure_lightning.edits.applied import apply_edit
from erasure_lightning.methods.spm import SPM

CONCEPTS = [Concept("small cat", "dog"), Concept("star")]

#: What the shipped config gives.
ARGUMENTS = numbers("spm")


def disturbed(**arguments):
    """An SPM whose adapters are not at their beginning any more."""
    module = SPM(concepts=CONCEPTS, backbone=TinyBackbone(), **(ARGUMENTS | arguments))
    module.configure_model()
    for parameter in module.trainable().values():
        nn.init.normal_(parameter, std=0.2)
    return module


def predict(backbone, prompts):
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3)).expand(
        len(prompts), -1, -1, -1
    )
    with torch.no_grad():
        return backbone.denoise(x, torch.full((len(prompts),), 500), backbone.encode(prompts))


def beside_layer(layer, *openness):
    adapter, membrane = (
        SemiPermeable(layer, concepts=2),
        Membrane(concepts=2, sentences=1, words=1, length=1, width=1),
    )
    adapter.membrane, membrane.openness = (membrane,), torch.tensor([openness])
    nn.init.normal_(adapter.up)
    return adapter


@pytest.mark.parametrize(
    ("layer", "shape"),
    [(nn.Linear(6, 5), (1, 3, 6)), (nn.Conv2d(6, 5, 3, stride=2, padding=1), (1, 6, 8, 8))],
    ids=["linear", "convolution"],
)
def test_what_concepts_add_is_a_sum_without_cross_terms(layer, shape):
    x = torch.randn(shape)
    added = [
        beside_layer(layer, 1.0, 0.0),
        beside_layer(layer, 0.0, 1.0),
        beside_layer(layer, 0.5, 0.25),
    ]
    for other in added[1:]:
        other.load_state_dict(added[0].state_dict())
    first, second, both = (adapter(x, layer(x)) - layer(x) for adapter in added)
    assert torch.allclose(both, 0.5 * first + 0.25 * second, atol=1e-6)
    assert not torch.allclose(first, second, atol=1e-2)


def test_a_layer_and_its_adapter_are_one_layer_of_rank_one_more():
    layer = nn.Linear(6, 5)
    adapter, x = beside_layer(layer, 1.0, 0.0), torch.randn(2, 3, 6)
    adapter.membrane[0].openness = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    assert torch.allclose(
        adapter(x, layer(x)), layer(x) + x @ torch.outer(adapter.down[0], adapter.up[0]), atol=1e-6
    )


class TestGamma:
    @pytest.mark.parametrize("transport", ["rescaled", "cosine"])
    def test_a_concepts_own_sentences_open_it_and_it_alone(self, transport):
        module = disturbed(transport=transport)
        for number, concept in enumerate(CONCEPTS):
            prompts = [sentence.format(concept.name) for sentence in module.templates]
            gamma = module.membrane.gamma(module.backbone.encode(prompts).tokens)
            assert torch.allclose(gamma[:, number], torch.ones(len(prompts)), atol=1e-5)
            assert (gamma[:, 1 - number] < 0.97).all()

    def test_what_is_unrelated_opens_less(self):
        module = disturbed(transport="rescaled")
        gamma = module.membrane.gamma(
            module.backbone.encode(["a car", "a bird", "a boat", ""]).tokens
        )
        assert (gamma >= 0).all()
        assert gamma.max() < 0.6
        assert gamma.median() < 0.2

    def test_rescaling_is_from_what_foreign_words_say(self):
        raw, rescaled = (
            disturbed(transport=transport).membrane for transport in ("cosine", "rescaled")
        )
        states = TinyBackbone().encode(["a car", "a bird", "a boat", "the fish"]).tokens
        assert not raw.unrelated.any()
        assert torch.equal(raw.similarities(states), rescaled.similarities(states))
        assert (raw.gamma(states) > rescaled.gamma(states)).all()

    def test_without_transport_all_is_open(self):
        module = disturbed(transport="none")
        assert torch.equal(
            module.membrane.gamma(module.backbone.encode(["a car"]).tokens), torch.ones(1, 2)
        )


def test_each_row_of_a_batch_has_its_own_gamma():
    module = disturbed()
    prompts = ["a small cat", "", "a star", "a car"]
    alone = torch.cat([predict(module.backbone, [prompt]) for prompt in prompts])
    assert torch.allclose(predict(module.backbone, prompts), alone, atol=1e-5)


def test_shut_it_is_the_original_and_open_it_is_not():
    module = disturbed()
    prompts = ["a small cat", "a car"]
    with module.membrane.fixed(torch.zeros(2, 2)):
        assert torch.equal(predict(module.backbone, prompts), predict(module.original, prompts))
    assert not torch.allclose(
        predict(module.backbone, prompts), predict(module.original, prompts), atol=1e-2
    )


@pytest.mark.parametrize("transport", ["rescaled", "none"])
def test_a_pipeline_opens_as_the_module_does(tmp_path, transport):
    module, tiny = disturbed(transport=transport), TinyBackbone()
    module.save_edit(tmp_path / "edit.safetensors")
    pipeline = tiny.to_pipeline()
    prompts = ["small cat", "a car", ""]
    before = predict(tiny, prompts)
    apply_edit(tmp_path, pipeline)
    assert torch.allclose(predict(tiny, prompts), predict(module.backbone, prompts), atol=1e-6)
    assert not torch.allclose(predict(tiny, prompts)[0], before[0], atol=1e-2)


def test_only_layers_of_the_transformers_have_adapters():
    module = disturbed()
    layers = module.plan().layers
    assert len([name for name in layers if name.endswith(("proj_in", "proj_out"))]) == 2 * 4
    assert not [
        name for name in layers if "resnets" in name or "samplers" in name or "time_emb" in name
    ]
