"""Layouts of models' authors: exports of layers behind other names."""

import pytest
import torch
from original_layouts import original_tensors, write_original
from peft import LoraConfig
from safetensors.torch import load_file, save_file

from erasure_lightning import erase
from erasure_lightning.backbones.tiny import TinyFlux, TinySD3
from erasure_lightning.edits.applied import Edit
from erasure_lightning.errors import ErasureError


@pytest.fixture(scope="module", params=[TinyFlux, TinySD3], ids=lambda family: family.__name__)
def edited(request):
    """A family, and an edit of it that its pipeline holds."""
    pipeline = request.param().to_pipeline()
    options = {"method": "UCE", "anchor": "dog", "progress_bar": False, "accelerator": "cpu"}
    return request.param, erase(pipeline, "cat", **options)


def compiled(pipeline):
    pipeline.transformer = torch.compile(pipeline.transformer, backend="eager")


def with_lora(pipeline):
    layers = ["to_k", "context_embedder", "linear_1"]
    pipeline.transformer.add_adapter(LoraConfig(r=2, target_modules=layers))


@pytest.mark.parametrize("change", [compiled, with_lora])
@pytest.mark.parametrize("format", ["kohya-lora", "diff", "checkpoint"])
def test_a_wrapped_transformer_has_the_same_export(edited, format, change, tmp_path):
    family, edit = edited
    pipeline = family().to_pipeline()
    options = {}
    if format == "checkpoint":
        file = write_original(original_tensors(pipeline), tmp_path / "model.safetensors")
        options = {"checkpoint": file}
    change(pipeline)
    wrapped = Edit(edit.tensors, edit.metadata).apply(pipeline)
    wrapped.export(tmp_path / "wrapped.safetensors", format, **options)
    edit.export(tmp_path / "plain.safetensors", format, **options)
    actual, expected = (load_file(tmp_path / f"{n}.safetensors") for n in ("wrapped", "plain"))
    assert actual.keys() == expected.keys()
    assert all(torch.equal(actual[name], expected[name]) for name in expected)
    assert any(value.any() for value in expected.values())


def test_components_with_compiled_parts_are_not_written(edited, tmp_path):
    """Their names would be those of torch.compile's wrapper, which diffusers does not read."""
    family, edit = edited
    pipeline = family().to_pipeline()
    applied = Edit(edit.tensors, edit.metadata).apply(pipeline)
    pipeline.transformer.compile(backend="eager")
    applied.export(tmp_path / "in-place", "component")
    type(pipeline.transformer).from_pretrained(tmp_path / "in-place" / "transformer")
    blocks = pipeline.transformer.transformer_blocks
    blocks[0] = torch.compile(blocks[0], backend="eager")
    for format in ("component", "diffusers"):
        with pytest.raises(ErasureError, match=r"found parts that torch.compile renamed"):
            applied.export(tmp_path / format, format)
    assert [file.name for file in tmp_path.iterdir()] == ["in-place"]


def test_a_pipeline_of_coarser_precision_than_the_checkpoint_is_named(edited, tmp_path):
    family, edit = edited
    pipeline = family().to_pipeline()
    file = write_original(original_tensors(pipeline), tmp_path / "model.safetensors")
    pipeline.to(torch.bfloat16)
    applied = Edit(edit.tensors, edit.metadata).apply(pipeline)
    with pytest.raises(ErasureError, match=r"has in bfloat16; found .* in float32.* precision or"):
        applied.export(tmp_path / "erased.safetensors", "checkpoint", checkpoint=file)
    narrow = {name: value.bfloat16() for name, value in load_file(file).items()}
    save_file(narrow, tmp_path / "narrow.safetensors")
    options = {"checkpoint": tmp_path / "narrow.safetensors"}
    applied.export(tmp_path / "erased.safetensors", "checkpoint", **options)
