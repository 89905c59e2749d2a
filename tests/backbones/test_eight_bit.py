import copy

import pytest
import torch
from torch import nn

from erasure_lightning.api.evaluate import evaluate
from erasure_lightning.api.load import load_edited
from erasure_lightning.backbones import eight_bit
from erasure_lightning.backbones.eight_bit import EightBitLinear
from erasure_lightning.backbones.loading import load_backbone
from erasure_lightning.backbones.tiny import TinyBackbone, TinyFlux
from erasure_lightning.concepts.concept import Concept
from erasure_lightning.data.datamodule import PromptData
from erasure_lightning.edits.applied import load_edit
from erasure_lightning.errors import ErasureError
from erasure_lightning.methods.adavd import AdaVD
from erasure_lightning.methods.esd import ESD
from erasure_lightning.methods.sage import SAGE
from erasure_lightning.methods.spm import SPM
from erasure_lightning.planning.forecast import forecast_fit
from erasure_lightning.testing import edit_of, quick_fit
from erasure_lightning.training.latent_sources import PureNoise

LORA = {
    "rank": 2,
    "merge": False,
    "lora_layers": "to_[qkv]$|add_[qkv]_proj$",
    "latents": PureNoise(),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    TinyBackbone().save(folder)
    return str(folder)


def build(folder, method=ESD, base_dtype="int8", **arguments):
    return method(
        concepts=[Concept("cat", "dog")], backbone=folder, base_dtype=base_dtype, **arguments
    )


def quantised(module):
    return {name: m for name, m in module.named_modules() if isinstance(m, EightBitLinear)}


def changes(module):
    """An edit's differences from the values that it began with, as one vector."""
    start = build(module._source[0], type(module), module.base_dtype, **LORA)
    start.configure_model()
    begun = edit_of(start)
    return torch.cat([(v - begun[name]).flatten() for name, v in edit_of(module).items()])


def in_eight_bits(layer):
    eight_bit._quantise(layer)
    return layer


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_a_layer_computes_the_product_of_its_rounded_weights(autocast, bias):
    plain = nn.Linear(64, 5, bias=bias).requires_grad_(False)
    plain.weight[2] = 0  # has no largest value to divide by
    layer = in_eight_bits(copy.deepcopy(plain))
    assert layer.weight.dtype == torch.int8
    rounded = layer.weight.float() * layer.scale[:, None]
    assert (rounded - plain.weight).abs().max() <= plain.weight.abs().max() / 127 / 2 * 1.001
    assert torch.equal(rounded[2], torch.zeros(64))
    results = []
    for weight in (None, rounded):
        x = torch.linspace(-1, 1, 3 * 64).view(1, 3, 64).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            y = layer(x) if weight is None else nn.functional.linear(x, weight, plain.bias)
        assert y.dtype == (torch.bfloat16 if autocast else torch.float32)
        y.float().square().sum().backward()
        results.append((y.float(), x.grad))
    tolerance = 0.03 if autocast else 1e-5
    for one, other in zip(*results, strict=True):
        assert torch.allclose(one, other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("family", [TinyBackbone, TinyFlux])
def test_what_is_not_edited_is_stored_in_eight_bits_and_shared_with_the_original(family, tmp_path):
    folder = str(tmp_path)
    family().save(folder)
    module = build(folder, **LORA)
    module.configure_model()
    layers = quantised(module.backbone)
    assert layers
    assert list(quantised(module.original).values()) == list(layers.values())
    assert {f"denoiser.{layer}.base_layer" for layer in module._plan.layers} < layers.keys()
    assert all(name.startswith("denoiser.") and "block" in name for name in layers)
    others = [p for p in module.original.parameters() if p.dtype != torch.int8]
    assert {p.dtype for p in others} == {torch.bfloat16}
    plain = load_backbone(folder, torch.bfloat16)
    stored = sum(p.nbytes for p in module.original.parameters())
    saved = sum(layer.weight.numel() for layer in layers.values())
    assert stored == sum(p.nbytes for p in plain.parameters()) - saved


def test_weights_that_adapters_are_merged_into_are_not_rounded(folder):
    module = quick_fit(build(folder, **LORA | {"merge": True}), 2)
    plain = load_backbone(folder, torch.bfloat16)
    assert quantised(module.backbone)
    for name, value in edit_of(module).items():
        assert (value - plain.get_parameter(name)).norm() < 1e-3 * value.norm(), name


def test_an_edit_is_nearly_that_of_a_bfloat16_base_and_goes_onto_plain_weights(folder, tmp_path):
    other, module = (
        quick_fit(build(folder, base_dtype=dtype, lr=1e-3, **LORA), 3)
        for dtype in ("bfloat16", "int8")
    )
    change = changes(other)
    assert 0 < (changes(module) - change).norm() < 0.25 * change.norm()
    path = tmp_path / "edit.safetensors"
    module.save_edit(path)
    again = load_edited(path)
    assert quantised(again.backbone)
    assert all(torch.equal(value, edit_of(again)[name]) for name, value in edit_of(module).items())
    pipeline = load_backbone(folder).to_pipeline()
    before = {name: p.clone() for name, p in pipeline.unet.named_parameters()}
    load_edit(path).apply(pipeline)
    after = dict(pipeline.unet.named_parameters())
    assert {p.dtype for p in after.values()} == {torch.float32}
    assert any(not torch.equal(after[name], value) for name, value in before.items())
    evaluate(load_edit(path), pipeline, seeds=2, others=1, steps=2, progress_bar=False)
    assert all(torch.equal(p, after[n]) for n, p in pipeline.unet.named_parameters())


@pytest.mark.parametrize("method", [AdaVD, SAGE, SPM])
def test_a_method_reads_no_rounded_weights(folder, method):
    edits = [edit_of(quick_fit(build(folder, method, dtype), 1)) for dtype in ("bfloat16", "int8")]
    for name, value in edits[0].items():
        assert value.dtype == edits[1][name].dtype
        assert torch.allclose(value.float(), edits[1][name].float(), rtol=0.1, atol=0.05), name


def test_a_plan_counts_bytes(folder):
    def plan(dtype):
        module = build(folder, base_dtype=dtype, **LORA)
        return forecast_fit(module, PromptData(batch_size=2), (), False, max_steps=2)

    half, quarter = plan("bfloat16"), plan("int8")
    module = build(folder, **LORA)
    module.configure_model()
    layers = quantised(module.backbone).values()
    saved = sum(layer.weight.numel() - 4 * len(layer.scale) for layer in layers)
    assert half.held.weights.frozen - quarter.held.weights.frozen == saved
    assert half.peaks["step"] - quarter.peaks["step"] == pytest.approx(saved, rel=0.1)


def test_a_model_in_memory_and_shards_are_refused(folder):
    with pytest.raises(ErasureError, match="backbone by name.*found a TinyBackbone"):
        build(TinyBackbone())
    with pytest.raises(ErasureError, match="fsdp2 needs frozen weights of 16 or 32 bits"):
        eight_bit.refuse_sharding("int8", True)


def test_rounded_weights_are_not_saved_as_a_pipeline(folder, tmp_path):
    module = build(folder, **LORA)
    module.configure_model()
    with pytest.raises(ErasureError, match="found layers of the denoiser in 8 bits"):
        module.backbone.save(tmp_path)
