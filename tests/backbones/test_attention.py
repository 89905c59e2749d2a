"""Recorded attention of joint blocks: the stock processors', whose output stays bit-equal."""

import pytest
import torch

from erasure_lightning.backbones.tiny import TinyFlux, TinySD3

PROMPTS = ["a cat", "a photo of a dog"]


def predict(model, prompts):
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(2, *model.latent_shape(), generator=generator)
    return model.denoise(x, torch.tensor([300.0, 800.0]), model.encode(prompts))


@pytest.mark.parametrize(("family", "text_first"), [(TinyFlux, True), (TinySD3, False)])
def test_the_maps_are_those_of_the_stock_processors(family, text_first, monkeypatch):
    model = family()
    plain = torch.nn.functional.scaled_dot_product_attention
    called = []

    def attention(query, key, value, *arguments, **options):
        called.append((query * query.shape[-1] ** -0.5 @ key.mT).softmax(dim=-1))
        return plain(query, key, value, *arguments, **options)

    before = predict(model, PROMPTS)
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", attention)
    length = model.encode(PROMPTS).tokens.shape[1]
    called.clear()
    with model.attention() as maps:
        after = predict(model, PROMPTS)
    assert torch.equal(after, before)
    assert len(maps) == model.denoiser.config.num_layers
    for recorded, whole in zip(maps.values(), called, strict=False):
        pixels, words = slice(length, None), slice(None, length)
        if not text_first:
            pixels, words = slice(None, -length), slice(-length, None)
        assert torch.allclose(recorded, whole[:, :, pixels, words], atol=1e-6)
        assert (recorded.sum(dim=-1) < 1).all()


@pytest.mark.parametrize("family", [TinyFlux, TinySD3])
def test_processors_are_restored(family):
    model = family()
    layers = [module for module in model.denoiser.modules() if hasattr(module, "processor")]
    before = [layer.processor for layer in layers]
    with model.attention():
        assert [layer.processor for layer in layers] != before
    assert all(layer.processor is old for layer, old in zip(layers, before, strict=True))
