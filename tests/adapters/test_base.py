"""Rules and adapters in stock pipelines: beneath LoRAs, offloaded, and on projections."""

import accelerate
import pytest
import torch
from peft import LoraConfig

from erasure_lightning import erase
from erasure_lightning.backbones.tiny import TinyBackbone
from erasure_lightning.edits.applied import Edit
from erasure_lightning.errors import ErasureError

#: Each with arguments by which it acts on a random model.
ADAPTERS = {
    "AdaVD": {"steepness": 0.0},
    "Receler": {"steps": 2, "lr": 0.1},
    "SAFREE": {"filter": False, "alpha": -1.0},
    "SLD": {"threshold": 1.0},
    "SPM": {"steps": 2, "lr": 0.3},
}

#: Those beside layers that LoRAs wrap and that fused projections replace, with their adapters.
ON_PROJECTIONS = {"AdaVD": "ValueDecomposition", "SPM": "SemiPermeable"}


@pytest.fixture(scope="module")
def edits():
    """The edits' tensors and metadata, by method."""
    each = {}
    for name, arguments in ADAPTERS.items():
        pipeline = TinyBackbone().to_pipeline()
        edit = erase(pipeline, "cat", method=name, progress_bar=False, **arguments)
        each[name] = (edit.tensors, edit.metadata)
    return each


def drawn(pipeline):
    """Latents of a stock pipeline."""
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(1)
    return pipeline(
        "a cat", num_inference_steps=3, generator=generator, output_type="latent"
    ).images


def with_lora(pipeline):
    torch.manual_seed(0)
    layers = ["to_k", "to_v", "proj_in"]  # the last is a convolution
    pipeline.unet.add_adapter(LoraConfig(r=2, target_modules=layers, init_lora_weights=False))


def offloaded(pipeline):
    """As ``enable_sequential_cpu_offload`` does, which needs an accelerator."""
    for module in (pipeline.vae, pipeline.text_encoder, pipeline.unet):
        accelerate.cpu_offload(module, torch.device("cpu"))


@pytest.mark.parametrize("name", ON_PROJECTIONS)
def test_a_lora_takes_no_adapter_with_it_whichever_came_first(edits, name):
    first, last = (TinyBackbone().to_pipeline() for _ in range(2))
    plain = drawn(first)
    with_lora(first)
    edit = Edit(*edits[name]).apply(first)
    Edit(*edits[name]).apply(last)
    erased = drawn(last)
    with_lora(last)
    assert torch.equal(drawn(first), drawn(last))
    assert not torch.allclose(drawn(first), erased, atol=1e-3)  # the LoRA acts
    for pipeline in (first, last):
        pipeline.unload_lora_weights()
        assert torch.equal(drawn(pipeline), erased)
    assert not torch.allclose(erased, plain, atol=1e-3)
    edit.remove()
    assert torch.equal(drawn(first), plain)


@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapter_acts_where_weights_are_offloaded_afterwards(edits, name):
    pipeline = TinyBackbone().to_pipeline()
    plain = drawn(pipeline)
    edit = Edit(*edits[name]).apply(pipeline)
    erased = drawn(pipeline)
    assert not torch.allclose(erased, plain, atol=1e-3)
    offloaded(pipeline)
    assert next(pipeline.unet.parameters()).is_meta
    assert torch.equal(drawn(pipeline), erased)
    edit.strength = 0
    assert torch.equal(drawn(pipeline), plain)


@pytest.mark.parametrize("name", ON_PROJECTIONS)
def test_projections_with_adapters_are_not_fused(edits, name):
    pipeline = TinyBackbone().to_pipeline()
    edit = Edit(*edits[name]).apply(pipeline)
    erased = drawn(pipeline)
    words = f"fuse_qkv_projections needs projections without adapters; found {ON_PROJECTIONS[name]}"
    with pytest.raises(ErasureError, match=words):
        pipeline.fuse_qkv_projections()
    assert torch.equal(drawn(pipeline), erased)
    edit.remove()
    plain = drawn(pipeline)
    pipeline.fuse_qkv_projections()
    assert torch.allclose(drawn(pipeline), plain, atol=1e-4)


@pytest.mark.parametrize("name", ["Receler", "SLD"])
def test_projections_beneath_adapters_are_fused(edits, name):
    pipeline = TinyBackbone().to_pipeline()
    plain = drawn(pipeline)
    Edit(*edits[name]).apply(pipeline)
    erased = drawn(pipeline)
    pipeline.fuse_qkv_projections()
    assert torch.allclose(drawn(pipeline), erased, atol=1e-2)
    assert not torch.allclose(erased, plain, atol=1e-1)
