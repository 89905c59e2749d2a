import pytest
import torch
from edit_files import read_content, write_content
from safetensors.torch import save_file
from torch import nn

from erasure_lightning.edits.applied import apply_edit
from erasure_lightning.edits.components import component_fingerprints
from erasure_lightning.edits.edit import read_edit, read_edit_metadata
from erasure_lightning.edits.format import required_entry
from erasure_lightning.errors import ErasureError
from erasure_lightning.files.writing import write_atomically

META = {"method": "tests.trivial.Distillation", "concepts": [{"name": "cat"}], "seed": 3}


def test_an_edit_comes_back_with_what_it_was_made_from(tmp_path):
    values = {"text_encoder.w": torch.randn(2, 3)}
    write_content(tmp_path / "run" / "edit.safetensors", values, META)
    tensors, metadata = read_content(tmp_path / "run" / "edit.safetensors")
    assert torch.equal(tensors["text_encoder.w"], values["text_encoder.w"])
    assert metadata == META | {"format": 2}
    first = (tmp_path / "run" / "edit.safetensors").read_bytes()
    write_content(tmp_path / "again.safetensors", values, META)
    assert (tmp_path / "again.safetensors").read_bytes() == first


@pytest.mark.parametrize("content", [b"", b"\x80\x02}q\x00.", b"PK\x03\x04rubbish"])
def test_what_is_no_safetensors_file_is_refused(tmp_path, content):
    (tmp_path / "edit.safetensors").write_bytes(content)
    with pytest.raises(ErasureError, match="cannot be read as safetensors.*cut short, or a pickle"):
        read_edit(tmp_path / "edit.safetensors")


def test_a_file_cut_short_is_refused(tmp_path):
    path = tmp_path / "edit.safetensors"
    write_content(path, {"w": torch.randn(100)}, META)
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(ErasureError, match="cannot be read"):
        read_edit(path)


def test_missing_files_and_foreign_ones(tmp_path):
    with pytest.raises(ErasureError, match="No edit at"):
        read_edit(tmp_path / "nothing.safetensors")
    with pytest.raises(ErasureError, match=r"once it has finished. `erasure fit --ckpt_path "):
        read_edit(tmp_path / "edit.safetensors")
    save_file({"w": torch.ones(1)}, tmp_path / "foreign.safetensors")
    with pytest.raises(ErasureError, match="needs the metadata of an edit"):
        read_edit(tmp_path / "foreign.safetensors")


@pytest.mark.parametrize(
    ("entry", "shown"),
    [
        ({"method": 7}, "method as `erasure fit` writes them; found 7"),
        ({"concepts": 7}, "concepts as `erasure fit` writes them; found 7"),
        ({"concepts": ["cat"]}, "concepts as `erasure fit` writes them; found 'cat'"),
        (
            {"concepts": [{"nme": "cat"}]},
            "concepts as `erasure fit` writes them; found {'nme': 'cat'}",
        ),
        ({"backbone": None}, "backbone as `erasure fit` writes them; found None"),
        ({"arguments": []}, "arguments as `erasure fit` writes them"),
        ({"fingerprints": "x"}, "fingerprints as `erasure fit` writes them; found 'x'"),
        ({"adapters": []}, "adapters as `erasure fit` writes them"),
    ],
)
def test_metadata_of_another_type_are_refused(tmp_path, entry, shown):
    write_content(tmp_path / "edit", {"unet.w": torch.ones(1)}, META | entry)
    for read in (read_edit, read_edit_metadata):
        with pytest.raises(ErasureError, match=f"cannot be read: its metadata needs {shown}"):
            read(tmp_path / "edit")


def test_an_entry_that_is_not_there_is_named():
    assert required_entry(META, "seed") == 3
    with pytest.raises(ErasureError, match="metadata needs backbone here; found none"):
        required_entry(META, "backbone")


def test_an_edit_of_a_later_layout_is_refused(tmp_path):
    write_content(tmp_path / "edit", {"unet.w": torch.ones(1)}, META | {"format": 3})
    with pytest.raises(
        ErasureError, match="needs a later version .*: found layout 3, known are 1 to 2"
    ):
        read_edit(tmp_path / "edit")


def test_an_edit_of_layout_1_comes_in_today_s(tmp_path):
    older = [
        "denoiser.a.base_layer.weight",
        "denoiser.a.lora_A.default.weight",
        "text_encoders.0.b",
    ]
    plan = {"kind": "spm", "layers": ["a"]}
    about = META | {"format": 1, "adapters": {"denoiser": plan}}
    write_content(tmp_path / "edit", {name: torch.ones(1) for name in older}, about)
    tensors, metadata = read_content(tmp_path / "edit")
    assert set(tensors) == {"unet.a.weight", "unet.a.lora_A.default.weight", "text_encoder.b"}
    assert metadata == META | {"format": 2, "adapters": {"unet": plan}}


def test_arguments_of_an_earlier_version_have_their_names_of_now(tmp_path):
    path = tmp_path / "edit.safetensors"
    write_content(path, {"w": torch.zeros(1)}, META | {"arguments": {"base": "bfloat16", "lr": 1}})
    assert read_edit(path).metadata["arguments"] == {"base_dtype": "bfloat16", "lr": 1}


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "edit.safetensors"
    write_atomically(path, b"old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(
        ErasureError, match="No space left on device. What was there before is untouched"
    ):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["edit.safetensors"]


class Pipeline:
    def __init__(self, width=2):
        self.text_encoder = nn.Linear(width, width)
        self.unet = nn.Linear(1, 1)


def test_an_edit_goes_into_a_pipeline_that_shares_the_component(tmp_path):
    pipeline = Pipeline()
    new = torch.randn(2, 2)
    metadata = META | {
        "fingerprints": {"text_encoder": component_fingerprints(pipeline.text_encoder)}
    }
    write_content(tmp_path / "edit.safetensors", {"text_encoder.weight": new}, metadata)
    unet = pipeline.unet.weight.clone()
    assert apply_edit(tmp_path, pipeline).metadata["method"] == META["method"]
    assert torch.equal(pipeline.text_encoder.weight, new)
    assert torch.equal(pipeline.unet.weight, unet)


@pytest.mark.parametrize("transfer", [False, True])
def test_a_pipeline_of_another_shape_is_refused(tmp_path, transfer):
    write_content(tmp_path / "edit.safetensors", {"text_encoder.weight": torch.ones(2, 2)}, META)
    with pytest.raises(
        ErasureError,
        match=r"1 parameters of Pipeline.text_encoder; found 1 missing or of another shape",
    ):
        apply_edit(tmp_path, Pipeline(width=3), transfer=transfer)


def test_a_pipeline_without_the_component_is_refused(tmp_path):
    write_content(tmp_path / "edit.safetensors", {"text_encoder_2.weight": torch.ones(2, 2)}, META)
    with pytest.raises(
        ErasureError, match="needs a pipeline with a text_encoder_2; found none in Pipeline"
    ):
        apply_edit(tmp_path, Pipeline())
